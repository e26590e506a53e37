//! Fields that are one string, or a short list of strings or of tokens.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};
use utoipa::openapi::{
    RefOr,
    schema::{ObjectBuilder, Schema, Type},
};

use super::shape;

/// One string or up to [`Strings::MAX`] of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::http) struct Strings(pub(in crate::http) Vec<String>);

impl Strings {
    /// OpenAI's own limit is 4; vLLM's users send more.
    pub(in crate::http) const MAX: usize = 16;
}

shape::shape!(
    Strings,
    "Strings",
    shape::any_of([shape::stop(), shape::list(shape::stop(), None, Some(Strings::MAX))])
);

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

/// `{"50256": -100}`: what is added to the logits of up to [`Biases::MAX`] tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::http) struct Biases(pub(in crate::http) Vec<(u32, f64)>);

impl Biases {
    /// OpenAI takes 300.
    pub(in crate::http) const MAX: usize = 1024;
}

shape::shape!(Biases, "Biases", {
    let bias = ObjectBuilder::new()
        .schema_type(Type::Number)
        .minimum(Some(-100.0))
        .maximum(Some(100.0))
        .build();
    let id = ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[0-9]{1,9}$")).build();
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .property_names(Some(id))
        .additional_properties(Some(RefOr::T(Schema::from(bias))))
        .max_properties(Some(Self::MAX))
        .into()
});

impl<'de> Deserialize<'de> for Biases {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(BiasesVisitor)
    }
}

struct BiasesVisitor;

impl<'de> Visitor<'de> for BiasesVisitor {
    type Value = Biases;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object of at most {} token ids and a number for each", Biases::MAX)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Biases, A::Error> {
        let mut biases: Vec<(u32, f64)> = Vec::new();
        while let Some((id, bias)) = entries.next_entry::<String, f64>()? {
            if biases.len() == Biases::MAX {
                return Err(A::Error::invalid_length(biases.len() + 1, &self));
            }
            let Ok(id) = id.parse() else {
                return Err(A::Error::custom(format!("{id:?} is no token id")));
            };
            biases.push((id, bias));
        }
        biases.sort_by_key(|(id, _)| *id);
        if let Some([(id, _), _]) =
            biases.array_windows().find(|[(one, _), (other, _)]| one == other)
        {
            return Err(A::Error::custom(format!("the token {id} is there twice")));
        }
        Ok(Biases(biases))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn biases_are_of_tokens() {
        let parse = |json: &str| serde_json::from_str::<Biases>(json);
        let given = parse(r#"{"50":-100,"7":1.5}"#).unwrap();
        assert_eq!(given, Biases(vec![(7, 1.5), (50, -100.0)]));
        for bad in [r#"{"a":1}"#, r#"{"-1":1}"#, r#"{"1":"x"}"#, r#"{"1":1,"01":1}"#, "[]", "3"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let many: Vec<_> = (0..=Biases::MAX).map(|id| format!(r#""{id}":0"#)).collect();
        assert!(parse(&format!("{{{}}}", many.join(","))).is_err());
    }

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
