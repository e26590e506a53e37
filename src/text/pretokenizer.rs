//! How GGUF's names for tokenizers are spelled out: the steps of the models' own `tokenizer.json`.

use serde_json::{Value, json};
use std::collections::HashMap;
use tokenizers::models::bpe::Merges;

/// What stands before the first token of a text, and how words are told apart, for one
/// `tokenizer.ggml.pre`. The values are those of the models' own `tokenizer.json` files; `default` is llama.cpp's
/// (`llama-vocab.cpp`), for files that do not say what their tokenizer does.
pub(super) struct PreTokenizer {
    pub(super) normalizer: Option<Value>,
    pub(super) splitter: Value,
    /// Whether a word that is a token is that token, whatever the merges make of it.
    pub(super) ignore_merges: bool,
    /// Whether texts begin with the bos token when `add_bos_token` is not there.
    pub(super) adds_bos: bool,
}

impl PreTokenizer {
    pub(super) const SUPPORTED: &'static str =
        "default, gpt-2, smollm, starcoder, llama-bpe, llama3, llama-v3, smaug-bpe, qwen2, tekken";

    /// What `tokenizer.ggml.pre` names.
    pub(super) fn named(name: &str) -> Option<Self> {
        const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        // Each splits what the one before has left whole: punctuation, then GPT-2's words, then numbers, by three digits.
        const DEFAULT: [&str; 4] = [
            r"[\p{P}\$\+<=>\^~\|]+",
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
            r"\p{N}+",
            r"[0-9][0-9][0-9]",
        ];
        const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let plain =
            |splitter| Self { normalizer: None, splitter, ignore_merges: false, adds_bos: false };
        Some(match name {
            "default" => plain(split(&DEFAULT)),
            "gpt-2" => plain(byte_level_words()),
            "smollm" | "starcoder" => {
                let digits = json!({"type": "Digits", "individual_digits": true});
                let steps = [digits, byte_level_words()];
                plain(json!({"type": "Sequence", "pretokenizers": steps}))
            }
            "llama-bpe" | "llama3" | "llama-v3" => {
                Self { ignore_merges: true, adds_bos: true, ..plain(split(&[LLAMA3])) }
            }
            "smaug-bpe" => plain(split(&[LLAMA3])),
            "qwen2" => Self { normalizer: Some(json!({"type": "NFC"})), ..plain(split(&[QWEN2])) },
            "tekken" => Self { ignore_merges: true, ..plain(split(&[TEKKEN])) },
            _ => return None,
        })
    }
}

/// Bytes as printable characters, of words told apart before.
fn byte_level() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": false})
}

/// The same, of words told apart by GPT-2's pattern.
fn byte_level_words() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": true})
}

/// Words by one pattern after the other: what a pattern matches, and what lies between its matches.
fn split(patterns: &[&str]) -> Value {
    let words = |pattern: &&str| {
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
            "invert": false})
    };
    let steps: Vec<Value> = patterns.iter().map(words).chain([byte_level()]).collect();
    json!({"type": "Sequence", "pretokenizers": steps})
}

/// What byte-level encoding does, undone.
pub(super) fn byte_level_decoder() -> Value {
    byte_level()
}

/// Spaces as `▁`, with `leading` of them put before each text.
pub(super) fn sentence_piece_normalizer(leading: usize) -> Value {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let prepend = json!({"type": "Prepend", "prepend": "▁".repeat(leading)});
    let steps = if leading > 0 { vec![prepend, replace] } else { vec![replace] };
    json!({"type": "Sequence", "normalizers": steps})
}

/// The same, undone.
pub(super) fn sentence_piece_decoder(leading: usize) -> Value {
    let mut steps = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if leading > 0 {
        steps.push(json!({"type": "Strip", "content": " ", "start": leading, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": steps})
}

/// The merges of a `SentencePiece` vocabulary: every way to cut a token in two tokens, the better
/// scores first, as transformers' converter has them.
pub(super) fn merges_by_score(tokens: &[String], scores: &[f32]) -> Merges {
    let ids: HashMap<&str, usize> = tokens.iter().map(String::as_str).zip(0..).collect();
    let mut ranked = Vec::new();
    for (token, &score) in tokens.iter().zip(scores) {
        let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let mut pairs: Vec<_> = cuts
            .filter_map(|(left, right)| Some(((*ids.get(left)?, *ids.get(right)?), left, right)))
            .collect();
        pairs.sort_by_key(|&(ids, ..)| ids);
        ranked.extend(pairs.into_iter().map(|(_, left, right)| (score, left, right)));
    }
    let length = |text: &str| text.chars().count();
    ranked.sort_by(|a, b| {
        let lengths = |of: &(f32, &str, &str)| (length(of.1), length(of.2));
        b.0.total_cmp(&a.0).then_with(|| lengths(b).cmp(&lengths(a)))
    });
    ranked.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Fixture {
        tokens: Vec<String>,
        scores: Vec<f32>,
        merges: Merges,
    }

    #[test]
    fn merges_are_those_that_transformers_derives() {
        // Made by make.py beside it; half of the scores are ties.
        let fixture = include_str!("../../tests/fixtures/text/merges.json");
        let Fixture { tokens, scores, merges } = serde_json::from_str(fixture).unwrap();
        assert!(merges.len() > 100, "{} merges", merges.len());
        assert_eq!(merges_by_score(&tokens, &scores), merges);
    }

    #[test]
    fn every_supported_name_is_known() {
        for name in PreTokenizer::SUPPORTED.split(", ") {
            assert!(PreTokenizer::named(name).is_some(), "{name}");
        }
        assert!(PreTokenizer::named("hexagon").is_none());
    }

    /// Worked out by hand from llama.cpp's patterns.
    #[test]
    fn the_default_splits_as_llama_cpp_does() {
        use tokenizers::{
            OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _,
            PreTokenizerWrapper,
        };
        let splitter = PreTokenizer::named("default").unwrap().splitter;
        let splitter: PreTokenizerWrapper = serde_json::from_value(splitter).unwrap();
        let words = |text: &str| -> Vec<String> {
            let mut pieces = PreTokenizedString::from(text);
            splitter.pre_tokenize(&mut pieces).unwrap();
            let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
            splits.into_iter().map(|(_, (from, to), _)| text[from..to].to_owned()).collect()
        };
        let cases: [(&str, &[&str]); 8] = [
            ("Hello world", &["Hello", " world"]),
            // Punctuation goes first: no contraction is left, and no blank before it is its own.
            ("it's, (well) x+=1", &["it", "'", "s", ",", " ", "(", "well", ")", " x", "+=", "1"]),
            ("a $$ b", &["a", " ", "$$", " b"]),
            // Numbers lose the blank before them; ASCII digits are cut by threes.
            ("in 42 of 1234567", &["in", " ", "42", " of", " ", "123", "456", "7"]),
            ("½ ٣٤٥٦", &["½", " ", "٣٤٥٦"]),
            ("a  b\n\n c", &["a", " ", " b", "\n\n", " c"]),
            ("end  ", &["end", "  "]),
            ("日本語 №5 ☃☃", &["日本語", " №", "5", " ☃☃"]),
        ];
        for (text, expected) in cases {
            assert_eq!(words(text), expected, "{text:?}");
        }
    }
}
