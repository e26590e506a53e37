//! How few tokens a text can become, told from its bytes alone.

use super::pieces::{Pieces, Spelling};
use serde_json::Value;
use tokenizers::{ModelWrapper, Tokenizer};

/// The most bytes of text that composing characters (NFC) makes one byte; 3.5 is reached.
const COMPOSED: usize = 4;
/// `▁` in a text has three bytes, in a token it is a space.
const SPACE: usize = 3;

/// What is known of a text's tokens before it is encoded.
pub(super) struct Bound {
    /// The most bytes of text that one token can stand for.
    bytes_per_token: usize,
    /// Bytes that become tokens; others may leave no trace.
    spelled: [bool; 256],
}

impl Bound {
    /// `None` where nothing is known: something on the way may drop text, or take in any amount of it.
    pub(super) fn of(tokenizer: &Tokenizer, spelling: Spelling, pieces: &Pieces) -> Option<Self> {
        let added = tokenizer.get_added_tokens_decoder();
        // Such a token takes in the whitespace beside it, or is one only where it stands alone.
        let odd = added.values().any(|token| token.lstrip || token.rstrip || token.single_word);
        if odd || !spells(tokenizer.get_model(), spelling) {
            return None;
        }
        let space = match spelling {
            Spelling::ByteLevel => 1,
            Spelling::SentencePiece { .. } => SPACE,
        };
        let normalized = serde_json::to_value(tokenizer.get_normalizer()).ok()?;
        let split = serde_json::to_value(tokenizer.get_pre_tokenizer()).ok()?;
        let normalized = steps(&normalized, "normalizers").into_iter().map(normalizer);
        let factor = normalized.product::<Option<usize>>()? * space;
        let spelled = pieces.single_bytes();
        // What has a token of its own could become something without one.
        let changes = factor > 1 && spelled.contains(&false);
        let keeps = steps(&split, "pretokenizers").into_iter().all(keeps_all);
        let bytes_per_token = pieces.longest() * factor;
        (keeps && !changes).then_some(Self { bytes_per_token, spelled })
    }

    /// A number of tokens that `text` has at least.
    pub(super) fn least_tokens(&self, text: &str) -> usize {
        let spelled = text.bytes().filter(|byte| self.spelled[usize::from(*byte)]).count();
        spelled.div_ceil(self.bytes_per_token)
    }
}

/// Whether a byte that has a token becomes that token wherever it stands, if no other takes it in.
fn spells(model: &ModelWrapper, spelling: Spelling) -> bool {
    let ModelWrapper::BPE(model) = model else { return false };
    let none = |affix: &Option<String>| affix.as_ref().is_none_or(String::is_empty);
    let alike = none(&model.continuing_subword_prefix) && none(&model.end_of_word_suffix);
    // Without fallback a run of characters that have no token is one unknown token.
    alike && (model.byte_fallback || spelling == Spelling::ByteLevel)
}

/// The steps of a description, which is one step, a sequence of them, or nothing.
fn steps<'a>(description: &'a Value, key: &str) -> Vec<&'a Value> {
    match description[key].as_array() {
        Some(list) => list.iter().flat_map(|step| steps(step, key)).collect(),
        None if description.is_null() => Vec::new(),
        None => vec![description],
    }
}

/// How many bytes this normalizer makes one byte at most.
fn normalizer(step: &Value) -> Option<usize> {
    match step["type"].as_str()? {
        "NFC" => Some(COMPOSED),
        "Prepend" | "ByteLevel" => Some(1),
        "Replace" if step["pattern"]["String"] == " " && step["content"] == "▁" => Some(1),
        _ => None,
    }
}

/// Whether this step only tells words apart.
fn keeps_all(step: &Value) -> bool {
    match step["type"].as_str() {
        Some("ByteLevel" | "Digits" | "Metaspace") => true,
        Some("Split" | "Punctuation") => step["behavior"].as_str().is_some_and(|b| b != "Removed"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use tokenizers::models::bpe::BPE;
    use tokenizers::normalizers::{NFC, NFD};
    use tokenizers::{NormalizedString, Normalizer};

    /// "x" repeated 2,000 times was one unknown token, and refused as 134 at least.
    #[test]
    fn without_byte_fallback_nothing_is_known_of_unknown_characters() {
        let model = |fallback, prefix: Option<&str>| {
            let bpe = BPE::builder().byte_fallback(fallback);
            let bpe = match prefix {
                Some(prefix) => bpe.continuing_subword_prefix(prefix.to_owned()),
                None => bpe,
            };
            ModelWrapper::BPE(bpe.build().unwrap())
        };
        let sentence_piece = Spelling::SentencePiece { leading: 1 };
        assert!(!spells(&model(false, None), sentence_piece));
        assert!(spells(&model(true, None), sentence_piece));
        assert!(spells(&model(false, None), Spelling::ByteLevel));
        assert!(!spells(&model(false, Some("##")), Spelling::ByteLevel));
    }

    fn normalized(by: &impl Normalizer, character: char) -> String {
        let mut text = NormalizedString::from(character.to_string());
        by.normalize(&mut text).unwrap();
        text.get().to_owned()
    }

    #[test]
    fn composing_characters_leaves_more_than_a_quarter_of_a_text() {
        let all = || ('\u{80}'..=char::MAX).chain('\0'..'\u{80}');
        // The longest ways to write a character that does not come apart.
        let mut longest: HashMap<char, usize> = HashMap::new();
        for character in all() {
            let apart = normalized(&NFD, character);
            let mut characters = apart.chars();
            if let (Some(only), None) = (characters.next(), characters.next()) {
                let bytes = longest.entry(only).or_default();
                *bytes = character.len_utf8().max(*bytes);
            }
        }
        for character in all() {
            let composed = normalized(&NFC, character).len();
            let apart: usize = normalized(&NFD, character).chars().map(|c| longest[&c]).sum();
            assert!(apart.max(character.len_utf8()) < composed * COMPOSED, "{character:?}");
        }
    }
}
