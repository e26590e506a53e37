//! Long texts, and how many tokens a text has at least.

use std::time::{Duration, Instant};

use super::*;

#[test]
fn long_texts_and_long_runs_of_whitespace_are_refused() {
    // After an even run, only a word split from it begins with the last space.
    let text = Gguf::byte_level("llama-bpe", &["ĠĠ", "Ġx"], &["Ġ Ġ", "Ġ x"]).read().unwrap();
    let encode = |prompt: &str| text.encode(prompt, Framing::Bare);
    let run = " ".repeat(MAX_WHITESPACE);
    assert_eq!(encode(&format!("{run}x")).unwrap().last(), Some(&257));
    assert_eq!(
        encode(&format!("x{run}\n")),
        Err(Error::TooMuchWhitespace { characters: MAX_WHITESPACE + 1, max: MAX_WHITESPACE })
    );
    let long = "x".repeat(MAX_TEXT + 1);
    assert_eq!(encode(&long), Err(Error::TextTooLong { bytes: MAX_TEXT + 1, max: MAX_TEXT }));
}

#[test]
fn encoding_takes_time_linear_in_the_text() {
    // 200,000 steps squared take minutes; linear, the worst of these takes half a second.
    let limit = Duration::from_mins(2);
    let words = ["aa", "aaaa", "ĠĠ", "ĠĠĠĠ"];
    let merges = ["a a", "aa aa", "Ġ Ġ", "ĠĠ ĠĠ"];
    for pre in ["smollm", "llama-bpe"] {
        let text = Gguf::byte_level(pre, &words, &merges).read().unwrap();
        for unit in ["a", " ", "1", "!", "\n", "é", "a ", " \n"] {
            let prompt = unit.repeat(200_000 / unit.len());
            let start = Instant::now();
            text.encode(&prompt, Framing::Bare).unwrap();
            assert!(start.elapsed() < limit, "{pre}, {unit:?}: {:?}", start.elapsed());
        }
    }
}

#[test]
fn the_least_tokens_are_known_where_nothing_shrinks_a_text() {
    // The longest token is <|end|> with seven bytes.
    assert_eq!(BYTE_LEVEL.least_tokens(&"x".repeat(70)), 10);
    assert_eq!(BYTE_LEVEL.least_tokens(&"x".repeat(71)), 11);
    // NFC makes one byte of almost four.
    let qwen = Gguf::byte_level("qwen2", &[], &[]).read().unwrap();
    assert_eq!(qwen.least_tokens(&"x".repeat(70)), 3);
    // `<0x..>` is a byte; the longest token is </s>, and `▁` a space.
    assert_eq!(SENTENCE_PIECE.least_tokens(&"x".repeat(150)), 10);
}

#[test]
fn the_least_tokens_are_unknown_where_text_may_get_lost() {
    let least = |change: fn(&mut serde_json::Value)| {
        let mut tokenizer = Dir::tokenizer();
        change(&mut tokenizer);
        let dir = Dir(TempDir::new().unwrap()).write("tokenizer.json", &tokenizer.to_string());
        dir.read().unwrap().least_tokens(&"x".repeat(1000))
    };
    assert_eq!(least(|_| {}), 250);
    let lossy: [fn(&mut serde_json::Value); 5] = [
        |t| t["normalizer"] = json!({"type": "Lowercase"}),
        |t| t["pre_tokenizer"] = json!({"type": "WhitespaceSplit"}),
        |t| {
            t["pre_tokenizer"] = json!({"type": "Split", "pattern": {"String": "x"},
                "behavior": "Removed", "invert": false});
        },
        |t| t["added_tokens"][0]["rstrip"] = json!(true),
        |t| {
            let id = t["model"]["vocab"]["x"].take();
            t["model"]["vocab"].as_object_mut().unwrap().remove("x");
            t["model"]["vocab"]["xyz"] = id;
        },
    ];
    for change in lossy {
        assert_eq!(least(change), 0);
    }
}
