//! `/v1/messages` as Anthropic writes it on the wire.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, SeqAccess, Visitor},
};
use serde_json::{Map, Value, value::RawValue};
use utoipa::ToSchema;

use super::{
    content::{Content, TextRole},
    form::FlatFormat,
    list::Strings,
    object::Object,
    shape,
    usage::Usage,
};

/// The fields that only messages have.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct MessageFields {
    pub(in crate::http) system: Option<Content>,
    #[schema(value_type = Vec<Turn>, min_items = 1)]
    pub(in crate::http) messages: Vec<Object<Turn>>,
    #[schema(value_type = Option<Vec<MessagesTool>>)]
    pub(in crate::http) tools: Option<Vec<Map<String, Value>>>,
    #[schema(value_type = Option<ToolChoice>)]
    pub(in crate::http) tool_choice: Option<Object<ToolChoice>>,
    pub(in crate::http) stop_sequences: Option<Strings>,
    #[schema(value_type = Option<About>)]
    pub(in crate::http) metadata: Option<Object<About>>,
    #[schema(value_type = Option<Thinking>)]
    pub(in crate::http) thinking: Option<Object<Thinking>>,
    #[schema(value_type = Option<OutputConfig>)]
    pub(in crate::http) output_config: Option<Object<OutputConfig>>,
}

/// What somebody has said.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct Turn {
    pub(in crate::http) role: TextRole,
    pub(in crate::http) content: Blocks,
}

/// `{"type": "auto"}`, `any`, `none`, or `{"type": "tool", "name": ".."}`
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = MessagesToolChoice)]
pub(in crate::http) struct ToolChoice {
    #[serde(rename = "type")]
    #[schema(pattern = "^(auto|any|tool|none)$")]
    pub(in crate::http) kind: String,
    pub(in crate::http) name: Option<String>,
    pub(in crate::http) disable_parallel_tool_use: Option<bool>,
}

/// What a function is called, what it is for, and what it takes, as JSON schema.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is nothing but its schema: what is sent is kept as it is")]
struct MessagesTool {
    #[schema(pattern = "^[a-zA-Z0-9_-]{1,64}$")]
    name: String,
    description: Option<String>,
    #[schema(value_type = Object)]
    input_schema: Value,
}

/// A string, which is a text, or a list of blocks.
#[derive(Debug, PartialEq)]
pub(in crate::http) struct Blocks(pub(in crate::http) Vec<Block>);

/// A part of what somebody has said.
#[derive(Debug, PartialEq)]
pub(in crate::http) enum Block {
    /// `{"type": "text", "text": ".."}`
    Text(String),
    /// `{"type": "tool_use", "id": "..", "name": "..", "input": {..}}`
    Use { id: String, name: String, input: Map<String, Value> },
    /// `{"type": "tool_result", "tool_use_id": "..", "content": ..}`
    Result { id: String, content: String, outcome: Outcome },
}

/// How a call has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Outcome {
    Done,
    Failed,
}

/// A block as it is sent.
#[derive(Deserialize)]
struct BlockIn {
    #[serde(rename = "type")]
    kind: BlockKind,
    text: Option<String>,
    id: Option<String>,
    name: Option<String>,
    input: Option<Map<String, Value>>,
    tool_use_id: Option<String>,
    content: Option<Content>,
    is_error: Option<bool>,
}

impl BlockIn {
    fn block<E: Error>(self) -> Result<Block, E> {
        let missing = E::missing_field;
        Ok(match self.kind {
            BlockKind::Text => Block::Text(self.text.ok_or_else(|| missing("text"))?),
            BlockKind::Use => Block::Use {
                id: self.id.ok_or_else(|| missing("id"))?,
                name: self.name.ok_or_else(|| missing("name"))?,
                input: self.input.unwrap_or_default(),
            },
            BlockKind::Result => Block::Result {
                id: self.tool_use_id.ok_or_else(|| missing("tool_use_id"))?,
                content: self.content.map_or_else(String::new, |content| content.0),
                outcome: if self.is_error == Some(true) { Outcome::Failed } else { Outcome::Done },
            },
        })
    }
}

impl<'de> Deserialize<'de> for Block {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Object::<BlockIn>::deserialize(deserializer)?.0.block()
    }
}

/// What a block is.
enum BlockKind {
    Text,
    Use,
    Result,
}

impl<'de> Deserialize<'de> for BlockKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "text" => Ok(Self::Text),
            "tool_use" => Ok(Self::Use),
            "tool_result" => Ok(Self::Result),
            other => Err(Error::unknown_variant(other, &["text", "tool_use", "tool_result"])),
        }
    }
}

shape::shape!(Blocks, "Blocks", {
    let kind = |kind| ("type", shape::words(&[kind]));
    let used = [
        kind("tool_use"),
        ("id", shape::text()),
        ("name", shape::text()),
        ("input", shape::any_object()),
    ];
    let result = [kind("tool_result"), ("tool_use_id", shape::text())];
    let rest = [("content", Content::schema()), ("is_error", shape::of::<Option<bool>>())];
    let block = shape::any_of([
        shape::part(&["text"]),
        shape::object(used, []),
        shape::object(result, rest),
    ]);
    shape::any_of([shape::text(), shape::list(block, None, None)])
});

impl<'de> Deserialize<'de> for Blocks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BlocksVisitor)
    }
}

struct BlocksVisitor;

impl<'de> Visitor<'de> for BlocksVisitor {
    type Value = Blocks;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list of blocks")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Blocks, E> {
        Ok(Blocks(vec![Block::Text(text.to_owned())]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Blocks, A::Error> {
        let mut blocks = Vec::new();
        while let Some(block) = items.next_element()? {
            blocks.push(block);
        }
        Ok(Blocks(blocks))
    }
}

/// Of the request.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct About {
    pub(in crate::http) user_id: Option<String>,
}

/// Whether the model is to think first.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct Thinking {
    #[serde(rename = "type")]
    pub(in crate::http) kind: String,
}

/// How the answer is to be.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct OutputConfig {
    #[schema(value_type = Option<FlatFormat>)]
    pub(in crate::http) format: Option<Object<FlatFormat>>,
}

/// `message`: the answer, or its beginning.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct MessageBody<'a> {
    pub(in crate::http) id: &'a str,
    #[serde(rename = "type")]
    pub(in crate::http) kind: &'static str,
    pub(in crate::http) role: &'static str,
    pub(in crate::http) model: &'a str,
    pub(in crate::http) content: Vec<BlockOut<'a>>,
    #[serde(flatten)]
    pub(in crate::http) stop: Stop<'a>,
    pub(in crate::http) usage: MessageUsage,
}

/// A part of an answer.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::http) enum BlockOut<'a> {
    Text(TextBlock<'a>),
    Use(UseBlock<'a>),
}

/// What is called; at the beginning of a stream's block without what it is called with.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct UseBlock<'a> {
    #[serde(rename = "type")]
    pub(in crate::http) kind: &'static str,
    pub(in crate::http) id: &'a str,
    pub(in crate::http) name: &'a str,
    #[schema(value_type = Object)]
    pub(in crate::http) input: &'a RawValue,
}

/// What an event adds to a block.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::http) enum BlockDelta<'a> {
    Text(TextBlock<'a>),
    Input(InputDelta<'a>),
}

/// `{"type": "input_json_delta", "partial_json": ".."}`
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct InputDelta<'a> {
    #[serde(rename = "type")]
    pub(in crate::http) kind: &'static str,
    pub(in crate::http) partial_json: &'a str,
}

/// Text of an answer, or what an event adds to it.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct TextBlock<'a> {
    #[serde(rename = "type")]
    pub(in crate::http) kind: &'static str,
    pub(in crate::http) text: &'a str,
}

/// How many tokens a message would send.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct TokenCount {
    pub(in crate::http) input_tokens: usize,
}

/// Why an answer ended; nothing as long as it has not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(in crate::http) struct Stop<'a> {
    pub(in crate::http) stop_reason: Option<&'static str>,
    pub(in crate::http) stop_sequence: Option<&'a str>,
}

/// What it cost. Tokens of the prompt that had been computed before are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[expect(clippy::struct_field_names, reason = "they are Anthropic's")]
pub(in crate::http) struct MessageUsage {
    input_tokens: usize,
    cache_creation_input_tokens: usize,
    cache_read_input_tokens: usize,
    output_tokens: usize,
}

impl From<Usage> for MessageUsage {
    fn from(usage: Usage) -> Self {
        Self {
            input_tokens: usage.prompt() - usage.cached(),
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: usage.cached(),
            output_tokens: usage.completion(),
        }
    }
}

/// One event of a stream.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(in crate::http) enum MessageEvent<'a> {
    /// The answer as it begins.
    MessageStart { message: MessageBody<'a> },
    /// A block of it as it begins.
    ContentBlockStart { index: usize, content_block: BlockOut<'a> },
    /// A sign of life.
    Ping,
    /// What the block gets.
    ContentBlockDelta { index: usize, delta: BlockDelta<'a> },
    /// The block is complete.
    ContentBlockStop { index: usize },
    /// How it ended, and what it cost.
    MessageDelta { delta: Stop<'a>, usage: MessageUsage },
    /// The end.
    MessageStop,
}

impl MessageEvent<'_> {
    /// Its name, which its data has as well.
    pub(in crate::http) fn name(&self) -> &'static str {
        match self {
            Self::MessageStart { .. } => "message_start",
            Self::ContentBlockStart { .. } => "content_block_start",
            Self::Ping => "ping",
            Self::ContentBlockDelta { .. } => "content_block_delta",
            Self::ContentBlockStop { .. } => "content_block_stop",
            Self::MessageDelta { .. } => "message_delta",
            Self::MessageStop => "message_stop",
        }
    }
}
