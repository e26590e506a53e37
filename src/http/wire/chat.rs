//! `/v1/chat/completions` as it is written on the wire.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    content::MessageIn,
    object::Object,
    tools::{ToolCallOut, ToolChoiceIn, ToolIn},
    usage::{Usage, UsageKey},
};

/// The fields that only chats have.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct ChatFields {
    #[schema(value_type = Vec<MessageIn>, min_items = 1)]
    pub(in crate::http) messages: Vec<Object<MessageIn>>,
    #[schema(minimum = 1)]
    pub(in crate::http) max_completion_tokens: Option<usize>,
    pub(in crate::http) logprobs: Option<bool>,
    #[schema(minimum = 0, maximum = 20)]
    pub(in crate::http) top_logprobs: Option<usize>,
    pub(in crate::http) add_generation_prompt: Option<bool>,
    pub(in crate::http) continue_final_message: Option<bool>,
    #[schema(value_type = Option<Vec<ToolIn>>)]
    pub(in crate::http) tools: Option<Vec<Object<ToolIn>>>,
    pub(in crate::http) tool_choice: Option<ToolChoiceIn>,
    pub(in crate::http) parallel_tool_calls: Option<bool>,
    pub(in crate::http) return_token_ids: Option<bool>,
    pub(in crate::http) return_tokens_as_token_ids: Option<bool>,
}

/// `chat.completion`
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ChatCompletion<'a> {
    pub(in crate::http) id: &'a str,
    pub(in crate::http) object: &'static str,
    pub(in crate::http) created: u64,
    pub(in crate::http) model: &'a str,
    pub(in crate::http) choices: Vec<ChatChoice>,
    pub(in crate::http) usage: Usage,
    pub(in crate::http) system_fingerprint: &'a str,
    /// Where they are asked for, as are those of the choices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::http) prompt_token_ids: Option<&'a [u32]>,
}

/// One answer.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ChatChoice {
    pub(in crate::http) index: usize,
    pub(in crate::http) message: MessageOut,
    pub(in crate::http) logprobs: Option<ChatLogprobs>,
    pub(in crate::http) finish_reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::http) token_ids: Option<Vec<u32>>,
}

/// The assistant's message, without text where it only calls tools. `refusal` is always there: OpenAI's schema requires the key.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct MessageOut {
    pub(in crate::http) role: &'static str,
    pub(in crate::http) content: Option<String>,
    pub(in crate::http) refusal: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::http) tool_calls: Vec<ToolCallOut>,
}

/// `chat.completion.chunk`
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ChatChunk<'a> {
    pub(in crate::http) id: &'a str,
    pub(in crate::http) object: &'static str,
    pub(in crate::http) created: u64,
    pub(in crate::http) model: &'a str,
    pub(in crate::http) system_fingerprint: &'a str,
    pub(in crate::http) choices: Vec<ChatDelta>,
    #[serde(skip_serializing_if = "UsageKey::is_absent")]
    pub(in crate::http) usage: UsageKey,
    /// On the first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::http) prompt_token_ids: Option<&'a [u32]>,
}

/// What a chunk adds to one answer.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(in crate::http) struct ChatDelta {
    pub(in crate::http) index: usize,
    pub(in crate::http) delta: Delta,
    pub(in crate::http) logprobs: Option<ChatLogprobs>,
    pub(in crate::http) finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::http) token_ids: Option<Vec<u32>>,
}

/// The part of a message that a chunk brings.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(in crate::http) struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::http) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::http) content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::http) tool_calls: Vec<ToolCallOut>,
}

/// The scores of a message's tokens.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(in crate::http) struct ChatLogprobs {
    pub(in crate::http) content: Vec<TokenLogprob>,
    pub(in crate::http) refusal: Option<&'static str>,
}

/// One token with its alternatives.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(in crate::http) struct TokenLogprob {
    #[serde(flatten)]
    pub(in crate::http) token: ScoredToken,
    pub(in crate::http) top_logprobs: Vec<ScoredToken>,
}

/// One token. `bytes` is what it is; `token` is that as text, with `\xNN` where it is none.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(in crate::http) struct ScoredToken {
    pub(in crate::http) token: String,
    pub(in crate::http) logprob: f32,
    pub(in crate::http) bytes: Vec<u8>,
}
