//! `/v1/messages` as Anthropic writes it on the wire.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    content::{Content, TextRole},
    list::Strings,
    object::Object,
    unsupported::Weight,
    usage::Usage,
};

/// The fields that only messages have.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct MessageFields {
    pub(in crate::http) system: Option<Content>,
    #[schema(value_type = Vec<Turn>)]
    pub(in crate::http) messages: Vec<Object<Turn>>,
    pub(in crate::http) max_tokens: usize,
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
    pub(in crate::http) content: Content,
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
    #[schema(value_type = serde_json::Value)]
    pub(in crate::http) format: Option<Weight>,
}

/// `message`: the answer, or its beginning.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct MessageBody<'a> {
    pub(in crate::http) id: &'a str,
    #[serde(rename = "type")]
    pub(in crate::http) kind: &'static str,
    pub(in crate::http) role: &'static str,
    pub(in crate::http) model: &'a str,
    pub(in crate::http) content: Vec<TextBlock<'a>>,
    #[serde(flatten)]
    pub(in crate::http) stop: Stop<'a>,
    pub(in crate::http) usage: MessageUsage,
}

/// Text of an answer, or what an event adds to it.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct TextBlock<'a> {
    #[serde(rename = "type")]
    pub(in crate::http) kind: &'static str,
    pub(in crate::http) text: &'a str,
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
    /// Its only block.
    ContentBlockStart { index: usize, content_block: TextBlock<'a> },
    /// A sign of life.
    Ping,
    /// Text that the block gets.
    ContentBlockDelta { index: usize, delta: TextBlock<'a> },
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
