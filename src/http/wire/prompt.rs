//! The four shapes of a completion's prompt, or of what is to be embedded, read without an intermediate tree: a list of a million ids stays four bytes each.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, Error, SeqAccess, Visitor, value::SeqAccessDeserializer},
};
use utoipa::openapi::{RefOr, schema::Schema};

use super::shape;

/// The most prompts of one request, and the most choices of one answer.
pub(in crate::http) const MAX_CHOICES: usize = 128;

/// One text to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http) enum Prompt {
    /// As characters.
    Text(String),
    /// As tokens.
    Ids(Vec<u32>),
}

/// A string, a list of strings, a list of ids, or a list of lists of ids; one to `MOST` prompts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http) struct Prompts<const MOST: usize>(pub(in crate::http) Vec<Prompt>);

impl<const MOST: usize> Prompts<MOST> {
    /// Its JSON schema.
    pub(super) fn shape() -> RefOr<Schema> {
        let some = |of| shape::list(of, Some(1), Some(MOST));
        let ids = || shape::list(shape::token(), None, None);
        let several = some(shape::any_of([shape::text(), ids()]));
        shape::any_of([shape::text(), shape::list(shape::token(), Some(1), None), several])
    }
}

impl<'de, const MOST: usize> Deserialize<'de> for Prompts<MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PromptsVisitor)
    }
}

struct PromptsVisitor<const MOST: usize>;

impl<'de, const MOST: usize> Visitor<'de> for PromptsVisitor<MOST> {
    type Value = Prompts<MOST>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a string, a list of token ids, or a list of 1 to {MOST} of either")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Prompts(vec![Prompt::Text(text.to_owned())]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let first = match items.next_element::<Item>()? {
            None => return Err(A::Error::invalid_length(0, &self)),
            Some(Item::Id(id)) => {
                let mut ids = vec![id];
                while let Some(id) = items.next_element::<u32>()? {
                    ids.push(id);
                }
                return Ok(Prompts(vec![Prompt::Ids(ids)]));
            }
            Some(Item::Prompt(prompt)) => prompt,
        };
        let mut prompts = vec![first];
        while let Some(item) = items.next_element::<Item>()? {
            let Item::Prompt(prompt) = item else {
                return Err(A::Error::invalid_type(de::Unexpected::Other("a token id"), &self));
            };
            if prompts.len() == MOST {
                return Err(A::Error::invalid_length(prompts.len() + 1, &self));
            }
            prompts.push(prompt);
        }
        Ok(Prompts(prompts))
    }
}

/// What may stand in the outer list.
enum Item {
    Id(u32),
    Prompt(Prompt),
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemVisitor)
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a token id or a list of token ids")
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<Item, E> {
        let id = u32::try_from(id);
        id.map(Item::Id).map_err(|_| E::custom("a token id has at most 32 bits"))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Item, E> {
        Ok(Item::Prompt(Prompt::Text(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Item, A::Error> {
        let ids = Vec::deserialize(SeqAccessDeserializer::new(items))?;
        Ok(Item::Prompt(Prompt::Ids(ids)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Vec<Prompt>, String> {
        serde_json::from_str::<Prompts<MAX_CHOICES>>(json)
            .map(|p| p.0)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_four_shapes() {
        let text = |text: &str| Prompt::Text(text.to_owned());
        assert_eq!(parse(r#""a""#), Ok(vec![text("a")]));
        assert_eq!(parse(r#"["a","b"]"#), Ok(vec![text("a"), text("b")]));
        assert_eq!(parse("[1,2]"), Ok(vec![Prompt::Ids(vec![1, 2])]));
        assert_eq!(parse("[[1],[2,3]]"), Ok(vec![Prompt::Ids(vec![1]), Prompt::Ids(vec![2, 3])]));
    }

    #[test]
    fn other_shapes_are_refused() {
        for json in [
            "[]",
            "{}",
            "3",
            "true",
            "[1,\"a\"]",
            "[\"a\",1]",
            "[-1]",
            "[1.5]",
            "[4294967296]",
            "[[[1]]]",
        ] {
            assert!(parse(json).is_err(), "{json}");
        }
        let many = serde_json::to_string(&vec!["x"; 129]).unwrap();
        assert!(parse(&many).unwrap_err().contains("1 to 128"));
    }
}
