//! Fields of a request that come back with its answer.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::label::{LABEL, Label, Metadata, bounded};
use crate::http::wire::{
    object::Object,
    shape,
    tools::{Named, ToolChoiceIn},
};

/// Fields that come back with the answer, filled in where they were left out.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
pub(in crate::http) struct Echoed {
    pub(in crate::http) instructions: Option<String>,
    #[schema(minimum = 1)]
    pub(in crate::http) max_output_tokens: Option<usize>,
    pub(in crate::http) metadata: Option<Metadata>,
    pub(in crate::http) parallel_tool_calls: Option<bool>,
    pub(in crate::http) prompt_cache_key: Option<Label>,
    #[schema(value_type = Option<Reasoning>)]
    pub(in crate::http) reasoning: Option<Object<Reasoning>>,
    pub(in crate::http) safety_identifier: Option<Label>,
    #[schema(minimum = 0, maximum = 2)]
    pub(in crate::http) temperature: Option<f32>,
    #[schema(value_type = Option<TextConfig>)]
    pub(in crate::http) text: Option<Object<TextConfig>>,
    pub(in crate::http) tool_choice: Option<ToolChoice>,
    pub(in crate::http) tools: Option<Vec<FlatTool>>,
    #[schema(minimum = 0, maximum = 20)]
    pub(in crate::http) top_logprobs: Option<usize>,
    #[schema(minimum = 0, maximum = 1)]
    pub(in crate::http) top_p: Option<f32>,
    pub(in crate::http) truncation: Option<Truncation>,
    pub(in crate::http) user: Option<Label>,
}

/// What reasoning is asked for, of which there is none.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
pub(in crate::http) struct Reasoning {
    effort: Option<Label>,
    summary: Option<Label>,
}

/// How the text is to be.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
pub(in crate::http) struct TextConfig {
    #[serde(default)]
    #[schema(value_type = TextFormat)]
    pub(in crate::http) format: Object<TextFormat>,
    verbosity: Option<Label>,
}

/// `{"type": "text"}`, `{"type": "json_object"}` or `{"type": "json_schema", "name": "..", "schema": {..}}`
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub(in crate::http) struct TextFormat {
    #[serde(rename = "type")]
    #[schema(value_type = String, pattern = "^(text|json_object|json_schema)$")]
    pub(in crate::http) kind: Label,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<Label>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    pub(in crate::http) schema: Option<Value>,
    /// It changes nothing: what is answered always fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    strict: Option<bool>,
}

impl Default for TextFormat {
    fn default() -> Self {
        let kind = Label::from("text");
        Self { kind, name: None, description: None, schema: None, strict: None }
    }
}

/// `{"type": "function", "name": "..", "description": "..", "parameters": {..}, "strict": true}`. It comes back as it is, with the
/// keys that clients look for.
#[derive(Clone, Debug)]
pub(in crate::http) struct FlatTool(pub(in crate::http) Map<String, Value>);

shape::shape!(
    FlatTool,
    "FlatTool",
    shape::object(
        [("type", shape::words(&["function"])), ("name", shape::name())],
        [
            ("description", shape::of::<Option<String>>()),
            ("parameters", shape::object_or_null()),
            ("strict", shape::of::<Option<bool>>()),
        ]
    )
);

impl<'de> Deserialize<'de> for FlatTool {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Map::deserialize(deserializer).map(Self)
    }
}

impl Serialize for FlatTool {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let sent = self.0.iter().map(|(key, value)| (key.as_str(), value));
        let missing = ["parameters", "strict"].into_iter().filter(|key| !self.0.contains_key(*key));
        serializer.collect_map(sent.chain(missing.map(|key| (key, &Value::Null))))
    }
}

/// `"auto"`, or `{"type": "function", "name": ".."}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(in crate::http) enum ToolChoice {
    Word(Label),
    Named {
        #[serde(rename = "type")]
        kind: Label,
        name: Option<Label>,
    },
}

shape::shape!(ToolChoice, "FlatToolChoice", {
    let named = [("type", shape::words(&["function"])), ("name", shape::name())];
    shape::any_of([shape::words(&["auto", "none", "required"]), shape::object(named, [])])
});

impl From<ToolChoice> for ToolChoiceIn {
    fn from(choice: ToolChoice) -> Self {
        match choice {
            ToolChoice::Word(Label(word)) => Self::Word(word),
            ToolChoice::Named { kind: Label(kind), name } => {
                Self::Named { kind, function: name.map(|Label(name)| Named { name }) }
            }
        }
    }
}

impl<'de> Deserialize<'de> for ToolChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ToolChoiceVisitor)
    }
}

struct ToolChoiceVisitor;

impl<'de> Visitor<'de> for ToolChoiceVisitor {
    type Value = ToolChoice;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a word or an object that names a function")
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<ToolChoice, E> {
        bounded(word.to_owned(), LABEL).map(|word| ToolChoice::Word(Label(word)))
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<ToolChoice, A::Error> {
        #[derive(Deserialize)]
        struct Choice {
            #[serde(rename = "type")]
            kind: Label,
            name: Option<Label>,
        }
        let Choice { kind, name } = Choice::deserialize(MapAccessDeserializer::new(entries))?;
        Ok(ToolChoice::Named { kind, name })
    }
}

/// What is to be done with too long an input. It is refused in any case.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::http) enum Truncation {
    /// Leave out what does not fit.
    Auto,
    /// Refuse it.
    #[default]
    Disabled,
}

impl<'de> Deserialize<'de> for Truncation {
    // Derived, a value that is no string would be taken for broken JSON.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "auto" => Ok(Self::Auto),
            "disabled" => Ok(Self::Disabled),
            other => Err(Error::unknown_variant(other, &["auto", "disabled"])),
        }
    }
}
