//! Fields that would change the answer and are not implemented: refused by name instead of being overlooked.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

/// How much a value says. The value itself is not kept, however large it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http) enum Weight {
    /// `null`, `false`, zero, an empty string, list or object: the same as absent.
    Nothing,
    /// A short word, which may be a harmless one.
    Word(String),
    /// A list of short words, each of which may be harmless.
    Words(Vec<String>),
    /// Anything else.
    Something,
}

/// The longest string that is kept as a word.
const WORD: usize = 16;
/// The longest list that is kept as one of words.
const WORDS: usize = 4;

impl Weight {
    fn of(nothing: impl Into<bool>) -> Self {
        if nothing.into() { Self::Nothing } else { Self::Something }
    }

    /// Whether the value may be overlooked without changing the answer.
    pub(in crate::http) fn is_nothing(&self) -> bool {
        *self == Self::Nothing
    }
}

impl<'de> Deserialize<'de> for Weight {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WeightVisitor)
    }
}

struct WeightVisitor;

impl<'de> Visitor<'de> for WeightVisitor {
    type Value = Weight;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E: Error>(self) -> Result<Weight, E> {
        Ok(Weight::Nothing)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Weight, E> {
        Ok(Weight::of(!value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Weight, E> {
        Ok(Weight::of(value == 0))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Weight, E> {
        Ok(Weight::Something)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Weight, E> {
        Ok(Weight::of(value == 0.0))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Weight, E> {
        Ok(match text {
            "" => Weight::Nothing,
            word if word.len() <= WORD => Weight::Word(word.to_owned()),
            _ => Weight::Something,
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Weight, A::Error> {
        let mut words = Some(Vec::new());
        while let Some(item) = items.next_element::<Weight>()? {
            words = match (words, item) {
                (Some(mut words), Weight::Word(word)) if words.len() < WORDS => {
                    words.push(word);
                    Some(words)
                }
                _ => None,
            };
        }
        Ok(match words {
            Some(words) if words.is_empty() => Weight::Nothing,
            Some(words) => Weight::Words(words),
            None => Weight::Something,
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Weight, A::Error> {
        let mut empty = true;
        while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            empty = false;
        }
        Ok(Weight::of(empty))
    }
}

/// A field that is refused unless its value is nothing, or harmless.
#[derive(Debug)]
pub(in crate::http) struct Unsupported {
    field: &'static str,
    harmless: Harmless,
}

/// Values that ask for what is done anyway.
#[derive(Debug)]
enum Harmless {
    /// One of these words.
    Word(&'static [&'static str]),
    /// A list of these words.
    Words(&'static [&'static str]),
}

impl Harmless {
    fn covers(&self, value: &Weight) -> bool {
        match (self, value) {
            (_, Weight::Nothing) => true,
            (Self::Word(known), Weight::Word(word)) => known.contains(&word.as_str()),
            (Self::Words(known), Weight::Words(words)) => {
                words.iter().all(|word| known.contains(&word.as_str()))
            }
            _ => false,
        }
    }
}

const fn refused(field: &'static str) -> Unsupported {
    unless(field, &[])
}

const fn unless(field: &'static str, harmless: &'static [&'static str]) -> Unsupported {
    Unsupported { field, harmless: Harmless::Word(harmless) }
}

const fn unless_all(field: &'static str, harmless: &'static [&'static str]) -> Unsupported {
    Unsupported { field, harmless: Harmless::Words(harmless) }
}

/// Refused wherever text is generated.
pub(in crate::http) const GENERATION: &[Unsupported] = &[
    refused("adapter"),
    refused("adapter_id"),
    refused("allowed_token_ids"),
    refused("bad_words"),
    refused("guided_whitespace_pattern"),
    refused("logits_processors"),
    refused("lora"),
    refused("lora_name"),
    refused("lora_path"),
    refused("lora_request"),
    refused("prompt_embeds"),
    refused("prompt_logprobs"),
    refused("truncate_prompt_tokens"),
    refused("use_beam_search"),
];

/// Refused in chats besides. A template from a request is refused for good: it would run code of the caller's.
pub(in crate::http) const CHAT: &[Unsupported] = &[
    refused("audio"),
    refused("best_of"),
    refused("echo"),
    unless("function_call", &["none", "auto"]),
    unless_all("modalities", &["text"]),
];

/// Refused wherever messages are rendered: they would be in the text.
pub(in crate::http) const RENDERED: &[Unsupported] = &[
    refused("chat_template"),
    refused("chat_template_kwargs"),
    refused("documents"),
    refused("functions"),
];

/// Refused in responses besides.
pub(in crate::http) const RESPONSE: &[Unsupported] = &[
    refused("background"),
    refused("best_of"),
    refused("continue_final_message"),
    refused("conversation"),
    refused("echo"),
    refused("logprobs"),
    refused("max_completion_tokens"),
    refused("messages"),
    unless_all("modalities", &["text"]),
    refused("moderation"),
    refused("prompt"),
    refused("return_token_ids"),
    refused("return_tokens_as_token_ids"),
];

/// Refused in a tool whose parts stand beside its type: who calls it, and when the model hears of it.
pub(in crate::http) const TOOL: &[Unsupported] =
    &[unless_all("allowed_callers", &["direct"]), refused("async"), refused("defer_loading")];

/// Refused in messages besides.
pub(in crate::http) const MESSAGE: &[Unsupported] = &[
    refused("audio"),
    refused("best_of"),
    refused("container"),
    refused("continue_final_message"),
    refused("echo"),
    refused("logprobs"),
    refused("max_completion_tokens"),
    refused("mcp_servers"),
    refused("output_format"),
    refused("return_token_ids"),
    refused("return_tokens_as_token_ids"),
];

/// Refused in completions besides.
pub(in crate::http) const COMPLETION: &[Unsupported] = &[refused("suffix")];

/// Refused where tokens are asked for: they are those of one voice.
pub(in crate::http) const TOKENS: &[Unsupported] = &[refused("adapters")];

/// Refused in embeddings: texts are taken whole, and none is made of a chat.
pub(in crate::http) const EMBEDDING: &[Unsupported] =
    &[refused("messages"), refused("truncate_prompt_tokens")];

/// Finds the first unsupported field in a JSON object.
#[derive(Debug)]
pub(in crate::http) struct Scan<'a> {
    lists: &'a [&'a [Unsupported]],
}

impl<'a> Scan<'a> {
    /// Looks for the fields of all lists.
    pub(in crate::http) fn new(lists: &'a [&'a [Unsupported]]) -> Self {
        Self { lists }
    }

    fn entry(&self, key: &str) -> Option<&'a Unsupported> {
        self.lists.iter().copied().flatten().find(|entry| entry.field == key)
    }
}

impl<'de> DeserializeSeed<'de> for Scan<'_> {
    type Value = Option<&'static str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Scan<'_> {
    type Value = Option<&'static str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(entry) =
            entries.next_key_seed(Key(|key: &str| self.entry(key), PhantomData))?
        {
            let Some(entry) = entry else {
                entries.next_value::<IgnoredAny>()?;
                continue;
            };
            if !entry.harmless.covers(&entries.next_value()?) {
                found = found.or(Some(entry.field));
            }
        }
        Ok(found)
    }
}

/// Looks a key up without keeping it.
struct Key<F, T>(F, PhantomData<T>);

impl<'de, T, F: FnOnce(&str) -> T> DeserializeSeed<'de> for Key<F, T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<T, F: FnOnce(&str) -> T> Visitor<'_> for Key<F, T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<T, E> {
        Ok((self.0)(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTS: [&[Unsupported]; 5] = [GENERATION, CHAT, RENDERED, RESPONSE, MESSAGE];

    fn scan(json: &str) -> Option<&'static str> {
        let mut deserializer = serde_json::Deserializer::from_str(json);
        Scan::new(&LISTS).deserialize(&mut deserializer).unwrap()
    }

    #[test]
    fn each_field_is_refused_by_name() {
        for entry in LISTS.into_iter().flatten() {
            for value in ["1", "-1", "0.5", "true", "\"required\"", "[0]", "{\"a\":0}"] {
                let json = format!(r#"{{"model":"x","{}":{value},"user":"y"}}"#, entry.field);
                assert_eq!(scan(&json), Some(entry.field), "{json}");
            }
        }
    }

    #[test]
    fn what_says_nothing_is_as_good_as_absent() {
        for value in ["null", "false", "0", "0.0", "\"\"", "[]", "{}"] {
            assert_eq!(scan(&format!(r#"{{"bad_words":{value}}}"#)), None, "{value}");
        }
        assert_eq!(scan(r#"{"function_call":"auto"}"#), None);
        assert_eq!(scan(r#"{"function_call":"none","metadata":{"functions":[1]}}"#), None);
    }

    #[test]
    fn text_is_the_only_modality() {
        assert_eq!(scan(r#"{"modalities":["text"]}"#), None);
        for value in [r#"["audio"]"#, r#"["text","audio"]"#, r#"["text",1]"#, r#""text""#] {
            assert_eq!(
                scan(&format!(r#"{{"modalities":{value}}}"#)),
                Some("modalities"),
                "{value}"
            );
        }
        assert_eq!(scan(r#"{"audio":{"voice":"alloy","format":"wav"}}"#), Some("audio"));
    }

    #[test]
    fn only_an_object_is_a_request() {
        let mut deserializer = serde_json::Deserializer::from_str("[1]");
        assert!(Scan::new(&[GENERATION, CHAT, RENDERED]).deserialize(&mut deserializer).is_err());
    }
}
