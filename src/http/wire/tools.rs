//! Tools as they are written on the wire.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{object::Object, shape};

/// `{"type": "function", "function": {"name": "..", "description": "..", "parameters": {..}}}`
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct ToolIn {
    #[serde(rename = "type")]
    #[schema(pattern = "^function$")]
    pub(in crate::http) kind: String,
    /// Kept as it is: templates show all of it.
    #[schema(value_type = FunctionTool, required = true)]
    pub(in crate::http) function: Option<Map<String, Value>>,
}

/// What a function is called, what it is for, and what it takes, as JSON schema.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is nothing but its schema: what is sent is kept as it is")]
struct FunctionTool {
    #[schema(pattern = "^[a-zA-Z0-9_-]{1,64}$")]
    name: String,
    description: Option<String>,
    #[schema(value_type = Option<Object>)]
    parameters: Option<Value>,
    strict: Option<bool>,
}

/// `"auto"`, or `{"type": "function", "function": {"name": ".."}}`
#[derive(Debug, PartialEq, Eq)]
pub(in crate::http) enum ToolChoiceIn {
    Word(String),
    Named { kind: String, function: Option<Named> },
}

/// `{"name": ".."}`
#[derive(Debug, Deserialize, PartialEq, Eq, ToSchema)]
pub(in crate::http) struct Named {
    pub(in crate::http) name: String,
}

shape::shape!(ToolChoiceIn, "ToolChoice", {
    let function = shape::object([("name", shape::text())], []);
    let named = [("type", shape::words(&["function"])), ("function", function)];
    shape::any_of([shape::words(&["auto", "none", "required"]), shape::object(named, [])])
});

impl<'de> Deserialize<'de> for ToolChoiceIn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ToolChoiceVisitor)
    }
}

struct ToolChoiceVisitor;

impl<'de> Visitor<'de> for ToolChoiceVisitor {
    type Value = ToolChoiceIn;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a word or an object that names a function")
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<ToolChoiceIn, E> {
        Ok(ToolChoiceIn::Word(word.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<ToolChoiceIn, A::Error> {
        #[derive(Deserialize)]
        struct Choice {
            #[serde(rename = "type")]
            kind: String,
            function: Option<Object<Named>>,
        }
        let Choice { kind, function } = Choice::deserialize(MapAccessDeserializer::new(entries))?;
        Ok(ToolChoiceIn::Named { kind, function: function.map(|Object(named)| named) })
    }
}

/// A call that the assistant made in an earlier message. `arguments` is JSON in a string.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct ToolCallIn {
    pub(in crate::http) id: Option<String>,
    #[serde(rename = "type")]
    pub(in crate::http) kind: Option<String>,
    #[schema(value_type = FunctionIn)]
    pub(in crate::http) function: Object<FunctionIn>,
}

/// `{"name": "..", "arguments": "{..}"}`
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct FunctionIn {
    pub(in crate::http) name: String,
    pub(in crate::http) arguments: Option<String>,
}

/// A call in an answer; in a whole one without its `index`, in a chunk without what was said of it before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(in crate::http) struct ToolCallOut {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::http) index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::http) id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(in crate::http) kind: Option<&'static str>,
    pub(in crate::http) function: FunctionOut,
}

/// `{"name": "..", "arguments": "{..}"}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(in crate::http) struct FunctionOut {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::http) name: Option<String>,
    pub(in crate::http) arguments: String,
}

impl ToolCallOut {
    /// As it stands in an answer that is sent at once.
    pub(in crate::http) fn whole(self) -> Self {
        Self { index: None, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_a_word_or_a_function() {
        let parse = |json: &str| serde_json::from_str::<ToolChoiceIn>(json).ok();
        assert_eq!(parse(r#""auto""#), Some(ToolChoiceIn::Word("auto".into())));
        let named = parse(r#"{"type":"function","function":{"name":"f"}}"#);
        let function = Some(Named { name: "f".into() });
        assert_eq!(named, Some(ToolChoiceIn::Named { kind: "function".into(), function }));
        for bad in ["3", "[]", "{}", r#"{"type":"function","function":{}}"#] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
