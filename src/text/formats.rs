//! JSON Schema's formats of strings where a grammar can have them exactly, and llguidance's own does not.

use serde_json::{Value, json};

/// No 29th of February but in leap years.
const DATE: &str = concat!(
    "(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)",
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))",
    "|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)",
);
/// Without leap seconds, of which it takes a table to know when they are.
const TIME: &str = concat!(
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?",
    "(?:[zZ]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])",
);
/// A part of a host's name, of 63 characters at most. Two hyphens behind the second one would say that it is encoded.
const LABEL: &str = concat!(
    "[a-zA-Z0-9](?:[a-zA-Z0-9]|[a-zA-Z0-9-][a-zA-Z0-9](?:[a-zA-Z0-9-]{0,59}[a-zA-Z0-9])?",
    "|[a-zA-Z0-9-]-[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,58}[a-zA-Z0-9])?)?",
);
/// The most characters of a host's name.
const HOST: u64 = 253;
/// What the name of a mailbox is made of.
const ATOM: &str = r"[a-zA-Z0-9!#$%&'*+\-/=?\^_`{|}~]+";
/// A number of an address.
const OCTET: &str = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";

/// Puts patterns in the place of such formats, wherever the schema has some.
pub(super) fn spell_out(schema: &mut Value) {
    match schema {
        Value::Array(parts) => parts.iter_mut().for_each(spell_out),
        Value::Object(fields) => {
            let patterns = match fields.get("format").and_then(Value::as_str) {
                Some(format) => patterns(format),
                None => Vec::new(),
            };
            for (name, value) in fields.iter_mut() {
                match (name.as_str(), value) {
                    // What these have is no schema.
                    ("enum" | "const" | "default" | "examples", _) => {}
                    // What names stand for here is one, whatever they are.
                    (
                        "properties" | "patternProperties" | "$defs" | "definitions"
                        | "dependentSchemas",
                        Value::Object(parts),
                    ) => parts.values_mut().for_each(spell_out),
                    (_, value) => spell_out(value),
                }
            }
            if patterns.is_empty() {
                return;
            }
            if fields.get("format").and_then(Value::as_str) == Some("hostname") {
                let most = fields.get("maxLength").and_then(Value::as_u64).unwrap_or(HOST);
                fields.insert("maxLength".to_owned(), most.min(HOST).into());
            }
            fields.remove("format");
            // There may be a pattern, and it counts as well.
            let all = fields.entry("allOf").or_insert_with(|| json!([]));
            if let Value::Array(all) = all {
                all.extend(patterns.into_iter().map(|pattern| json!({"pattern": pattern})));
            }
        }
        _ => {}
    }
}

/// What a string of the format matches; nothing for formats that stay as they are.
fn patterns(format: &str) -> Vec<String> {
    let host = format!(r"{LABEL}(?:\.{LABEL})*");
    match format {
        "date" => vec![format!("^{DATE}$")],
        "time" => vec![format!("^{TIME}$")],
        "date-time" => vec![format!("^{DATE}[tT]{TIME}$")],
        "hostname" => vec![format!("^{host}$")],
        "email" => vec![
            format!(r"^{ATOM}(?:\.{ATOM})*@(?:{host}|\[{OCTET}(?:\.{OCTET}){{3}}\])$"),
            format!("^[^@]{{1,64}}@[^@]{{1,{HOST}}}$"),
        ],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::text::{Form, Specials, Text, Ways};

    fn judge(format: &str) -> jsonschema::Validator {
        let schema = json!({"type": "string", "format": format});
        jsonschema::options().should_validate_formats(true).build(&schema).unwrap()
    }

    /// Whether it matches the patterns, and is no longer than it may be.
    fn fits(format: &str, text: &str) -> bool {
        let mut schema = json!({"type": "string", "format": format});
        spell_out(&mut schema);
        let built = jsonschema::validator_for(&schema).unwrap();
        built.is_valid(&text.into())
    }

    #[test]
    fn what_fits_is_what_the_judge_takes() {
        let label = "a".repeat(63);
        let host = format!("{label}.{label}.{label}.{}", "a".repeat(61));
        let mailbox = "m".repeat(64);
        for (format, yes, no) in [
            (
                "date",
                vec!["2024-02-29", "2000-02-29", "0400-02-29", "1999-12-31", "2023-02-28"],
                vec!["2023-02-29", "1900-02-29", "2024-02-30", "2023-04-31", "2023-13-01"],
            ),
            (
                "time",
                vec!["23:59:59Z", "00:00:00.25+23:59"],
                vec!["24:00:00Z", "12:00:60Z", "12:00:00"],
            ),
            (
                "date-time",
                vec!["2024-02-29T12:00:59z", "1990-01-01t00:00:00-01:30"],
                vec!["2023-02-29T12:00:00Z", "2023-01-01T12:59:60Z", "2023-01-01 12:00:00Z"],
            ),
            (
                "hostname",
                vec!["a", "ab", "a-b", "a--b", "a1.b-2.c", "1.2", &label, &host],
                vec!["", "-a", "a-", "a..b", "ab--c", "xn--a", "a_b", "a."],
            ),
            (
                "email",
                vec!["a@b", "a.b+c@d-e.f", "x@[127.0.0.1]"],
                vec![
                    "a",
                    "@b",
                    "a@",
                    ".a@b",
                    "a.@b",
                    "a@-b",
                    "a@[1.2.3]",
                    "a@[256.0.0.1]",
                    "a@ab--c",
                ],
            ),
        ] {
            for text in yes {
                assert!(
                    fits(format, text) && judge(format).is_valid(&text.into()),
                    "{format} {text}"
                );
            }
            for text in no {
                assert!(
                    !fits(format, text) && !judge(format).is_valid(&text.into()),
                    "{format} {text}"
                );
            }
        }
        for (format, text) in [
            ("hostname", format!("{label}a")),
            ("hostname", format!("{host}a")),
            ("email", format!("{mailbox}m@a")),
            ("email", format!("a@{host}a")),
        ] {
            assert!(
                !fits(format, &text) && !judge(format).is_valid(&text.clone().into()),
                "{text}"
            );
            let shorter = text.replacen("aa", "a", 1).replacen("mm", "m", 1);
            assert!(
                fits(format, &shorter) && judge(format).is_valid(&shorter.clone().into()),
                "{shorter}"
            );
        }
    }

    #[test]
    fn only_schemas_have_formats() {
        let mut schema = json!({
            "properties": {"format": {"format": "time", "pattern": "^1"}, "const": {"format": "uuid"}},
            "enum": [{"format": "time"}], "items": [{"anyOf": [{"format": "hostname", "maxLength": 9}]}],
        });
        spell_out(&mut schema);
        let time = json!({"pattern": "^1", "allOf": [{"pattern": format!("^{TIME}$")}]});
        assert_eq!(schema["properties"]["format"], time);
        assert_eq!(schema["properties"]["const"], json!({"format": "uuid"}));
        assert_eq!(schema["enum"], json!([{"format": "time"}]));
        let host = &schema["items"][0]["anyOf"][0];
        assert_eq!((&host["maxLength"], host.get("format")), (&json!(9), None));
    }

    /// Any way through the form of such a string is one that the judge takes.
    #[test]
    fn whatever_is_allowed_has_the_format() {
        let tied = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/tied");
        let text = Text::from_dir(&tied).unwrap();
        for format in
            ["date", "time", "date-time", "hostname", "email", "ipv4", "ipv6", "uuid", "duration"]
        {
            let judge = judge(format);
            let schema = json!({"type": "string", "format": format});
            let form = text.form(&Form::Schema(schema)).unwrap();
            let mut random = 1_u64;
            for walk in 0..40 {
                let (mut walk, mut ids, patience) = (form.clone(), Vec::new(), walk * 4);
                loop {
                    let (words, may_end) = match walk.after(ids.last().copied()).unwrap() {
                        Ways::None => (Vec::new(), true),
                        Ways::Some(words, may_end) => (words, may_end),
                    };
                    let ways: Vec<u32> = (0..u32::try_from(text.vocab()).unwrap())
                        .filter(|id| {
                            words
                                .get(*id as usize / 32)
                                .is_some_and(|word| word >> (id % 32) & 1 == 1)
                        })
                        .collect();
                    if may_end {
                        break;
                    }
                    // Those that end the string come last in a long walk, and first in a short one.
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let ends = ways.iter().find(|id| text.token_bytes(**id) == Some(b"\""));
                    let other = ways[usize::try_from(random >> 33).unwrap() % ways.len()];
                    ids.push(*ends.filter(|_| ids.len() >= patience).unwrap_or(&other));
                }
                let said: Value = serde_json::from_str(&text.decode(&ids, Specials::Show)).unwrap();
                assert!(judge.is_valid(&said), "{format}: {said}");
            }
        }
    }
}
