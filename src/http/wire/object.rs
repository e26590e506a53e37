//! Objects that are nothing but objects.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

/// Fields in an object. Derived readers would take a list too, its values by position.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub(in crate::http) struct Object<T>(pub(in crate::http) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData)).map(Self)
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Fields {
        a: u8,
    }

    #[test]
    fn a_list_is_no_object() {
        let read = |json| serde_json::from_str::<Object<Fields>>(json).map(|object| object.0.a);
        assert_eq!(read(r#"{"a":7,"b":[]}"#).unwrap(), 7);
        assert_eq!(serde_json::from_str::<Fields>("[7]").unwrap().a, 7, "why it is needed");
        for json in ["[7]", "7", "null", r#"{"a":"7"}"#] {
            assert!(read(json).is_err(), "{json}");
        }
    }
}
