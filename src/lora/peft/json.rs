//! JSON without ambiguity: a key that comes twice is an error, and errors say where they are.

use std::{fmt, str};

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::lora::refusal::{Place, Quoted};

/// A JSON value none of whose objects has a key twice; keys keep the order of the text.
///
/// Its depth is bounded by `serde_json`'s recursion limit of 128.
pub(super) struct Strict(pub(super) Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Strict(value)) = items.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(A::Error::custom(format!("the key {} comes twice", Quoted::new(&key))));
            }
            let Strict(value) = entries.next_value()?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

/// Where `error` was met in `text`, and what it is.
pub(super) fn locate(text: &str, error: &serde_json::Error) -> (Place, Quoted) {
    let (line, column) = (error.line(), error.column());
    let message = error.to_string();
    let position = format!(" at line {line} column {column}");
    let reason = message.strip_suffix(&position).unwrap_or(&message);
    let reason = match error.classify() {
        // Python's json writes them, and serde_json says only "expected value".
        serde_json::error::Category::Syntax if reason == "expected value" => {
            "a JSON value is expected, and NaN and Infinity are none"
        }
        _ => reason,
    };
    let key = last_key(&text[..offset(text, line, column)]).map(Quoted::new);
    (Place { line, column, key }, Quoted::new(reason))
}

/// The byte at 1-based `line` and `column`, or the nearest character boundary before it.
fn offset(text: &str, line: usize, column: usize) -> usize {
    let newlines = || text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
    let start = match line {
        0 | 1 => 0,
        _ => newlines().nth(line - 2).map_or(0, |(newline, _)| newline + 1),
    };
    let mut offset = start.saturating_add(column).min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

/// The last `"key":` of the text, without its quotes; a guess for messages, since strings may hold colons.
fn last_key(text: &str) -> Option<&str> {
    let before = text[..text.rfind(':')?].trim_end().strip_suffix('"')?;
    before.rfind('"').map(|quote| &before[quote + 1..])
}

/// The value as it would be written, cut for a message.
pub(super) fn quoted(value: &Value) -> Quoted {
    Quoted::new(&value.to_string())
}

/// The kind of a value in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Value, (Place, Quoted)> {
        serde_json::from_str(text).map(|Strict(value)| value).map_err(|error| locate(text, &error))
    }

    #[test]
    fn keys_keep_their_order() {
        let value = parse(r#"{"z": 1, "a": [null, true, -2, 0.5, "x"], "m": {}}"#).unwrap();
        assert_eq!(value.to_string(), r#"{"z":1,"a":[null,true,-2,0.5,"x"],"m":{}}"#);
    }

    #[test]
    fn a_key_that_comes_twice_is_an_error_at_any_depth() {
        for text in [r#"{"a": 1, "a": 1}"#, r#"[{"b": {"a": 1, "a": 2}}]"#] {
            assert_eq!(parse(text).unwrap_err().1.as_str(), "the key `a` comes twice");
        }
    }

    #[test]
    fn errors_name_the_key_they_stand_at() {
        for (text, key) in [
            ("{\n \"r\": 8,\n \"lora_alpha\": NaN\n}", "lora_alpha"),
            ("{\n \"lora_alpha\": 1e400, \"r\": 1}", "lora_alpha"),
            ("{\"ä\": \"ö\", \"lora_alpha\" : -Infinity}", "lora_alpha"),
            ("{\"r\": 8, \"bias\"", "r"),
        ] {
            assert_eq!(parse(text).unwrap_err().0.key.unwrap().as_str(), key, "{text}");
        }
        assert_eq!(parse("nonsense").unwrap_err().0.key, None);
    }

    #[test]
    fn depth_is_bounded() {
        let (_, reason) = parse(&"[".repeat(1_000_000)).unwrap_err();
        assert_eq!(reason.as_str(), "recursion limit exceeded");
    }
}
