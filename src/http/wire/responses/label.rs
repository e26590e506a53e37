//! Short strings that come back as they were sent, alone and in pairs.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, MapAccess, Visitor},
};
use utoipa::openapi::schema::{ObjectBuilder, Type};

use crate::http::wire::shape;

/// The longest string that an answer repeats, in characters.
pub(super) const LABEL: usize = 512;

/// As many pairs as OpenAI takes.
const PAIRS: usize = 16;

/// Its longest key, in characters.
const KEY: usize = 64;

/// A string that comes back: a short one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(in crate::http) struct Label(pub(in crate::http) String);

impl From<&str> for Label {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

shape::shape!(Label, "Label", shape::short(LABEL));

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        bounded(String::deserialize(deserializer)?, LABEL).map(Self)
    }
}

pub(super) fn bounded<E: Error>(text: String, most: usize) -> Result<String, E> {
    if text.chars().nth(most).is_some() {
        return Err(E::custom(format!("it has more than {most} characters")));
    }
    Ok(text)
}

/// Whatever the client wants back.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(in crate::http) struct Metadata(BTreeMap<String, String>);

shape::shape!(Metadata, "Metadata", {
    let key = ObjectBuilder::new().schema_type(Type::String).max_length(Some(KEY)).build();
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .property_names(Some(key))
        .additional_properties(Some(shape::short(LABEL)))
        .max_properties(Some(PAIRS))
        .into()
});

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MetadataVisitor)
    }
}

struct MetadataVisitor;

impl<'de> Visitor<'de> for MetadataVisitor {
    type Value = Metadata;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object of at most {PAIRS} strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Metadata, A::Error> {
        let mut pairs = BTreeMap::new();
        while let Some((key, value)) = entries.next_entry()? {
            pairs.insert(bounded(key, KEY)?, bounded(value, LABEL)?);
            if pairs.len() > PAIRS {
                return Err(A::Error::custom(format!("it has more than {PAIRS} pairs")));
            }
        }
        Ok(Metadata(pairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_is_bounded() {
        let metadata = |json: String| serde_json::from_str::<Metadata>(&json).is_ok();
        let pairs = |count: usize| {
            let pairs: BTreeMap<_, _> = (0..count).map(|n| (n.to_string(), "x")).collect();
            serde_json::to_string(&pairs).unwrap()
        };
        assert!(metadata(pairs(PAIRS)) && !metadata(pairs(PAIRS + 1)));
        let pair = |key: usize, value: usize| {
            format!(r#"{{"{}":"{}"}}"#, "\u{e4}".repeat(key), "\u{e4}".repeat(value))
        };
        assert!(metadata(pair(KEY, LABEL)));
        assert!(!metadata(pair(KEY + 1, 1)) && !metadata(pair(1, LABEL + 1)));
        assert!(!metadata(r#"{"a":1}"#.into()));
        let label =
            |length| serde_json::from_str::<Label>(&format!("\"{}\"", "x".repeat(length))).is_ok();
        assert!(label(LABEL) && !label(LABEL + 1));
    }
}
