//! What is wrong with a request's fields, in words of JSON.

use serde::de::DeserializeOwned;

use crate::{
    http::wire::{
        chat::ChatFields,
        common::Common,
        completion::CompletionFields,
        tokens::{Detokenize, Tokenize},
    },
    words,
};

fn said<T: DeserializeOwned>(json: &str) -> Option<String> {
    serde_json::from_str::<T>(json).err().map(|problem| words::of(&problem))
}

#[test]
fn each_kind_of_problem_has_its_sentence() {
    for (json, sentence) in [
        (r#"{"max_tokens":"9"}"#, "a whole number of 0 or more is expected, not the string \"9\""),
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
        "one of \"developer\", \"system\", \"user\", \"assistant\", \"tool\" is expected, not \"king\""
    );
    let list = r#"{"messages":[["user","hi"]]}"#;
    assert_eq!(said::<ChatFields>(list).unwrap(), "an object is expected, not a list");
    assert_eq!(said::<CompletionFields>("{}").unwrap(), "the field 'prompt' is missing");
}

#[test]
fn no_sentence_has_a_word_of_rust() {
    let fields = "model n response_format stream stream_options temperature top_p top_k seed max_tokens stop \
        stop_token_ids ignore_eos add_special_tokens messages prompt max_completion_tokens logprobs top_logprobs \
        echo best_of tokens";
    let values = r#"null true -1 1.5 1e300 18446744073709551615 "x" [] [1] [1.5] [-1] [[]] ["x",1] [{}] {}
        {"type":5} [{"role":5}] [{"role":"user","content":{}}]
        [{"role":"user","content":[{"type":5}]}] [{"role":"user","content":[{"type":"image"}]}]"#;
    let foreign = "usize u32 u64 i64 f64 struct sequence map variant boolean floating integer unit ` invalid line";
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
