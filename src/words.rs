//! What serde says of a value that does not fit, in words of JSON and without those of Rust.

/// The problem of a well-formed JSON value, without its place in the text.
pub(crate) fn of(problem: &serde_json::Error) -> String {
    let said = problem.to_string();
    let place = format!(" at line {} column {}", problem.line(), problem.column());
    let said = said.strip_suffix(&place).unwrap_or(&said);
    if let Some(field) = quoted(said, "missing field ") {
        return format!("the field '{field}' is missing");
    }
    if let Some(field) = quoted(said, "duplicate field ") {
        return format!("the field '{field}' is there more than once");
    }
    if let Some(unknown) = said.strip_prefix("unknown field `") {
        // The field is somebody's own text: what serde says of it begins at the last of these.
        let known = unknown.rsplit_once("`, expected ").or(unknown.rsplit_once("`, there are no "));
        return match known {
            Some((field, "fields")) => format!("the field '{field}' is not known here"),
            Some((field, known)) => {
                format!("the field '{field}' is not known here, but {}", known.replace('`', "'"))
            }
            None => format!("the field '{}' is not known here", unknown.trim_end_matches('`')),
        };
    }
    // The last one is serde's own: what was found may contain these words.
    match said.rsplit_once(", expected ") {
        Some((found, wanted)) => {
            format!("{} is expected, not {}", expected(wanted), self::found(found))
        }
        None => said.to_owned(),
    }
}

/// What stands in backquotes after `before`, and nothing else.
fn quoted<'a>(said: &'a str, before: &str) -> Option<&'a str> {
    said.strip_prefix(before)?.strip_prefix('`')?.strip_suffix('`')
}

fn expected(wanted: &str) -> String {
    let words = match wanted {
        "usize" | "u64" => "a whole number of 0 or more",
        "u8" => "a whole number from 0 to 255",
        "u32" => "a whole number from 0 to 4294967295",
        "i64" => "a whole number",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "an object",
        _ if wanted.starts_with("struct ") => "an object",
        // Of words that are known: the backquotes are serde's.
        _ => return wanted.replace('`', "\""),
    };
    words.to_owned()
}

fn found(said: &str) -> String {
    if let Some(word) = quoted(said, "unknown variant ") {
        return format!("\"{word}\"");
    }
    if let Some(count) = said.strip_prefix("invalid length ") {
        return format!("a list of {count}");
    }
    let value = said.strip_prefix("invalid type: ").or(said.strip_prefix("invalid value: "));
    let value = value.unwrap_or(said);
    let literal = ["boolean ", "integer ", "floating point "];
    match value {
        "sequence" => "a list".to_owned(),
        "map" => "an object".to_owned(),
        _ if value.starts_with("string ") => format!("the {value}"),
        _ => literal.iter().find_map(|kind| quoted(value, kind)).unwrap_or(value).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Two {
        #[expect(dead_code, reason = "only whether it can be read is asked")]
        one: u32,
        #[expect(dead_code, reason = "only whether it can be read is asked")]
        other: Option<String>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}

    #[test]
    fn what_is_not_known_is_named() {
        let said = |json: &str| of(&serde_json::from_str::<Two>(json).unwrap_err());
        assert_eq!(
            said(r#"{"three":1}"#),
            "the field 'three' is not known here, but 'one' or 'other'"
        );
        assert_eq!(
            said(r#"{"`, expected x":1}"#),
            "the field '`, expected x' is not known here, but 'one' or 'other'"
        );
        assert_eq!(said("[1]"), "an object is expected, not a list of 1");
        let nothing = of(&serde_json::from_str::<Nothing>(r#"{"a":1}"#).unwrap_err());
        assert_eq!(nothing, "the field 'a' is not known here");
    }
}
