//! Fields that are one string or a short list of strings.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor},
};

/// One string or up to [`Strings::MAX`] of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::http) struct Strings(pub(in crate::http) Vec<String>);

impl Strings {
    /// OpenAI's own limit is 4; vLLM's users send more.
    pub(in crate::http) const MAX: usize = 16;
}

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StringsVisitor)
    }
}

struct StringsVisitor;

impl<'de> Visitor<'de> for StringsVisitor {
    type Value = Strings;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a string or a list of at most {} strings", Strings::MAX)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Strings, E> {
        Ok(Strings(vec![text.to_owned()]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Strings, A::Error> {
        let mut strings = Vec::new();
        while let Some(string) = items.next_element::<String>()? {
            if strings.len() == Strings::MAX {
                return Err(A::Error::invalid_length(strings.len() + 1, &self));
            }
            strings.push(string);
        }
        Ok(Strings(strings))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_or_several() {
        let parse = |json: &str| serde_json::from_str::<Strings>(json);
        assert_eq!(parse(r#""a""#).unwrap(), Strings(vec!["a".into()]));
        assert_eq!(parse(r#"["a","b"]"#).unwrap(), Strings(vec!["a".into(), "b".into()]));
        assert_eq!(parse("[]").unwrap(), Strings(vec![]));
        assert!(parse("3").is_err());
        assert!(parse("[1]").is_err());
        let many = |count| serde_json::to_string(&vec!["x"; count]).unwrap();
        assert!(parse(&many(16)).is_ok());
        let refusal = parse(&many(17)).unwrap_err().to_string();
        assert!(refusal.contains("at most 16 strings"), "{refusal}");
    }
}
