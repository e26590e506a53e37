//! The messages of a chat.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor},
};
use utoipa::ToSchema;

use super::{object::Object, shape, tools::ToolCallIn, unsupported::Weight};

/// One message as it is sent.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct MessageIn {
    pub(in crate::http) role: Role,
    pub(in crate::http) content: Option<Content>,
    pub(in crate::http) name: Option<String>,
    #[schema(value_type = Option<Vec<ToolCallIn>>)]
    pub(in crate::http) tool_calls: Option<Vec<Object<ToolCallIn>>>,
    pub(in crate::http) tool_call_id: Option<String>,
    #[schema(ignore)]
    pub(in crate::http) function_call: Option<Weight>,
    #[schema(ignore)]
    pub(in crate::http) audio: Option<Weight>,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "lowercase")]
pub(in crate::http) enum Role {
    /// OpenAI's newer name for `system`.
    Developer,
    /// Sets the scene.
    System,
    /// Asks.
    User,
    /// Answers.
    Assistant,
    /// Tells what came of a call.
    Tool,
}

impl Role {
    /// The name that chat templates know.
    pub(in crate::http) fn in_template(self) -> &'static str {
        match self {
            Self::Developer | Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

impl<'de> Deserialize<'de> for Role {
    // Derived, a value that is no string would be taken for broken JSON.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "developer" => Ok(Self::Developer),
            "system" => Ok(Self::System),
            "user" => Ok(Self::User),
            "assistant" => Ok(Self::Assistant),
            "tool" => Ok(Self::Tool),
            other => Err(Error::unknown_variant(
                other,
                &["developer", "system", "user", "assistant", "tool"],
            )),
        }
    }
}

/// Who speaks where there is nothing but text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) struct TextRole(pub(in crate::http) Role);

shape::shape!(TextRole, "TextRole", shape::words(&["developer", "system", "user", "assistant"]));

impl<'de> Deserialize<'de> for TextRole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let role = match String::deserialize(deserializer)?.as_str() {
            "developer" => Role::Developer,
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            other => {
                let known = &["developer", "system", "user", "assistant"];
                return Err(Error::unknown_variant(other, known));
            }
        };
        Ok(Self(role))
    }
}

/// A string, or a list of text parts, which are joined by line breaks as vLLM does.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::http) struct Content(pub(in crate::http) String);

/// `{"type": "text", "text": ".."}`
#[derive(Deserialize)]
struct Part<K> {
    #[serde(rename = "type")]
    _kind: K,
    text: String,
}

/// `"text"`
struct PartKind;

impl<'de> Deserialize<'de> for PartKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "text" => Ok(Self),
            other => Err(Error::unknown_variant(other, &["text"])),
        }
    }
}

shape::shape!(Content, "Content", shape::content(&["text"]));

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        joined::<PartKind, D>(deserializer).map(Self)
    }
}

/// Reads a string, or a list of parts of these types of text.
pub(super) fn joined<'de, K: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<String, D::Error> {
    deserializer.deserialize_any(ContentVisitor::<K>(PhantomData))
}

struct ContentVisitor<K>(PhantomData<K>);

impl<'de, K: Deserialize<'de>> Visitor<'de> for ContentVisitor<K> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list of parts of type text")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<String, A::Error> {
        let mut content = String::new();
        let mut first = true;
        while let Some(part) = parts.next_element::<Part<K>>()? {
            if !std::mem::take(&mut first) {
                content.push('\n');
            }
            content.push_str(&part.text);
        }
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(json: &str) -> Result<String, String> {
        serde_json::from_str::<Content>(json).map(|c| c.0).map_err(|error| error.to_string())
    }

    #[test]
    fn strings_and_text_parts() {
        assert_eq!(content(r#""hi""#), Ok("hi".into()));
        assert_eq!(
            content(r#"[{"type":"text","text":"a"},{"text":"b","type":"text"}]"#),
            Ok("a\nb".into())
        );
        assert_eq!(content("[]"), Ok(String::new()));
    }

    #[test]
    fn other_parts_are_refused_by_their_type() {
        let refusal = content(r#"[{"type":"image_url","image_url":{"url":"x"}}]"#).unwrap_err();
        assert!(refusal.contains("image_url") && refusal.contains("text"), "{refusal}");
        assert!(content("1").is_err());
        assert!(content(r#"[{"type":"text"}]"#).is_err());
    }

    #[test]
    fn developer_is_system() {
        let role = |json: &str| serde_json::from_str::<Role>(json).map(Role::in_template);
        assert_eq!(role(r#""developer""#).unwrap(), "system");
        assert_eq!(role(r#""user""#).unwrap(), "user");
        assert!(role(r#""function""#).is_err());
        let role = |json: &str| serde_json::from_str::<TextRole>(json).map(|role| role.0);
        assert_eq!(role(r#""developer""#).unwrap(), Role::Developer);
        assert!(role(r#""tool""#).is_err() && role("7").is_err());
    }
}
