//! What serde says of a value that does not fit, in words of JSON and without those of Rust.

/// The problem of a well-formed JSON value, without its place in the text.
pub(super) fn of(problem: &serde_json::Error) -> String {
    let said = problem.to_string();
    let place = format!(" at line {} column {}", problem.line(), problem.column());
    let said = said.strip_suffix(&place).unwrap_or(&said);
    if let Some(field) = quoted(said, "missing field ") {
        return format!("the field '{field}' is missing");
    }
    if let Some(field) = quoted(said, "duplicate field ") {
        return format!("the field '{field}' is there more than once");
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
        "u32" => "a whole number from 0 to 4294967295",
        "i64" => "a whole number",
        "f32" | "f64" => "a number",
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
    use serde::de::DeserializeOwned;

    use super::*;
    use crate::http::wire::{
        chat::ChatFields,
        common::Common,
        completion::CompletionFields,
        lorax::Generate,
        messages::MessageFields,
        responses::{Echoed, ResponseFields},
        tokens::{Detokenize, Tokenize},
    };

    fn said<T: DeserializeOwned>(json: &str) -> Option<String> {
        serde_json::from_str::<T>(json).err().map(|problem| of(&problem))
    }

    #[test]
    fn each_kind_of_problem_has_its_sentence() {
        for (json, sentence) in [
            (
                r#"{"max_tokens":"9"}"#,
                "a whole number of 0 or more is expected, not the string \"9\"",
            ),
            (r#"{"max_tokens":-1}"#, "a whole number of 0 or more is expected, not -1"),
            (r#"{"n":1.5}"#, "a whole number of 0 or more is expected, not 1.5"),
            (r#"{"seed":true}"#, "a whole number is expected, not true"),
            (r#"{"temperature":[]}"#, "a number is expected, not a list"),
            (r#"{"stream":1}"#, "true or false is expected, not 1"),
            (r#"{"stop_token_ids":{}}"#, "a list is expected, not an object"),
            (
                r#"{"stop_token_ids":[4294967296]}"#,
                "a whole number from 0 to 4294967295 is expected, not 4294967296",
            ),
            (r#"{"stream_options":5}"#, "an object is expected, not 5"),
            (r#"{"response_format":{}}"#, "the field 'type' is missing"),
            (r#"{"n":1,"n":1}"#, "the field 'n' is there more than once"),
            (r#"{"model":7}"#, "a string is expected, not 7"),
            (r#"{"model":[", expected usize"]}"#, "a string is expected, not a list"),
            (
                r#"{"n":"x, expected y"}"#,
                "a whole number of 0 or more is expected, not the string \"x, expected y\"",
            ),
        ] {
            assert_eq!(said::<Common>(json).as_deref(), Some(sentence), "{json}");
        }
        let role = r#"{"messages":[{"role":"king","content":""}]}"#;
        assert_eq!(
            said::<ChatFields>(role).unwrap(),
            "one of \"developer\", \"system\", \"user\", \"assistant\" is expected, not \"king\""
        );
        let list = r#"{"messages":[["user","hi"]]}"#;
        assert_eq!(said::<ChatFields>(list).unwrap(), "an object is expected, not a list of 2");
        assert_eq!(said::<CompletionFields>("{}").unwrap(), "the field 'prompt' is missing");
    }

    #[test]
    fn no_sentence_has_a_word_of_rust() {
        let fields = "model n response_format stream stream_options temperature top_p top_k seed max_tokens stop \
            stop_token_ids ignore_eos add_special_tokens messages prompt max_completion_tokens logprobs top_logprobs \
            echo best_of tokens inputs parameters input instructions metadata reasoning text truncation user include \
            system thinking stop_sequences output_config";
        let values = r#"null true -1 1.5 1e300 18446744073709551615 "x" [] [1] [1.5] [-1] [[]] ["x",1] [{}] {}
            {"type":5} [{"role":5}] [{"role":"user","content":{}}]
            [{"role":"user","content":[{"type":5}]}] [{"role":"user","content":[{"type":"image"}]}]"#;
        let foreign = "usize u32 u64 i64 f32 f64 struct sequence map variant boolean floating integer unit ` invalid line";
        let mut sentences = 0;
        for field in fields.split_whitespace() {
            for value in values.split_whitespace() {
                let json = format!("{{\"{field}\":{value}}}");
                let refusals = [
                    said::<Common>(&json),
                    said::<ChatFields>(&json),
                    said::<CompletionFields>(&json),
                    said::<Tokenize>(&json),
                    said::<Detokenize>(&json),
                    said::<Generate>(&json),
                    said::<ResponseFields>(&json),
                    said::<Echoed>(&json),
                    said::<MessageFields>(&json),
                ];
                for sentence in refusals.into_iter().flatten() {
                    sentences += 1;
                    let mut foreign = foreign.split_whitespace();
                    assert!(!foreign.any(|word| sentence.contains(word)), "{json}: {sentence}");
                }
            }
        }
        assert!(sentences > 300, "{sentences}");
    }
}
