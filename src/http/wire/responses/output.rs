//! The answer: a response, its items, what it cost, and the events that tell of it.

use serde::Serialize;
use utoipa::ToSchema;

use super::Echoed;
use crate::http::wire::{chat::TokenLogprob, usage::Usage};

/// `response`: the answer, or as much as there is of it.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ResponseBody<'a> {
    pub(in crate::http) id: &'a str,
    pub(in crate::http) object: &'static str,
    pub(in crate::http) created_at: u64,
    pub(in crate::http) status: &'static str,
    pub(in crate::http) background: bool,
    pub(in crate::http) error: Option<ResponseError<'a>>,
    pub(in crate::http) incomplete_details: Option<IncompleteDetails>,
    pub(in crate::http) max_tool_calls: Option<usize>,
    pub(in crate::http) model: &'a str,
    pub(in crate::http) output: Vec<OutputItem<'a>>,
    pub(in crate::http) previous_response_id: Option<&'a str>,
    pub(in crate::http) service_tier: &'static str,
    pub(in crate::http) store: bool,
    pub(in crate::http) usage: Option<ResponseUsage>,
    #[serde(flatten)]
    pub(in crate::http) echoed: &'a Echoed,
}

/// Why a response has failed.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ResponseError<'a> {
    pub(in crate::http) code: &'static str,
    pub(in crate::http) message: &'a str,
}

/// Why a response is incomplete.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct IncompleteDetails {
    pub(in crate::http) reason: &'static str,
}

/// What the assistant says, or calls.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::http) enum OutputItem<'a> {
    Message(OutputMessage<'a>),
    Call(OutputCall<'a>),
}

/// What the assistant calls. `arguments` is JSON in a string.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct OutputCall<'a> {
    pub(in crate::http) id: &'a str,
    #[serde(rename = "type")]
    pub(in crate::http) kind: &'static str,
    pub(in crate::http) status: &'static str,
    pub(in crate::http) call_id: &'a str,
    pub(in crate::http) name: &'a str,
    pub(in crate::http) arguments: &'a str,
}

/// What the assistant says.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct OutputMessage<'a> {
    pub(in crate::http) id: &'a str,
    #[serde(rename = "type")]
    pub(in crate::http) kind: &'static str,
    pub(in crate::http) status: &'static str,
    pub(in crate::http) role: &'static str,
    pub(in crate::http) content: Vec<OutputText<'a>>,
}

/// Its text.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct OutputText<'a> {
    #[serde(rename = "type")]
    pub(in crate::http) kind: &'static str,
    pub(in crate::http) text: &'a str,
    #[schema(value_type = Vec<Value>)]
    pub(in crate::http) annotations: [(); 0],
    pub(in crate::http) logprobs: &'a [TokenLogprob],
}

/// What a response cost.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(in crate::http) struct ResponseUsage {
    input_tokens: usize,
    input_tokens_details: InputTokens,
    output_tokens: usize,
    output_tokens_details: OutputTokens,
    total_tokens: usize,
}

#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
struct InputTokens {
    cached_tokens: usize,
    /// What is kept for others is not counted.
    cache_write_tokens: usize,
}

#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
struct OutputTokens {
    reasoning_tokens: usize,
}

impl From<Usage> for ResponseUsage {
    fn from(usage: Usage) -> Self {
        Self {
            input_tokens: usage.prompt(),
            input_tokens_details: InputTokens {
                cached_tokens: usage.cached(),
                cache_write_tokens: 0,
            },
            output_tokens: usage.completion(),
            output_tokens_details: OutputTokens { reasoning_tokens: 0 },
            total_tokens: usage.prompt() + usage.completion(),
        }
    }
}

/// One event of a stream.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ResponseEvent<'a> {
    #[serde(rename = "type")]
    pub(in crate::http) kind: &'static str,
    /// Counted from 0.
    pub(in crate::http) sequence_number: usize,
    #[serde(flatten)]
    pub(in crate::http) what: Told<'a>,
}

/// What events tell of.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::http) enum Told<'a> {
    /// All of the response.
    Response { response: ResponseBody<'a> },
    /// One of its items.
    Item { output_index: usize, item: OutputItem<'a> },
    /// The only part of a message.
    Part { item_id: &'a str, output_index: usize, content_index: usize, part: OutputText<'a> },
    /// Text that this part gets.
    Delta {
        item_id: &'a str,
        output_index: usize,
        content_index: usize,
        delta: &'a str,
        logprobs: &'a [TokenLogprob],
    },
    /// All text that it has.
    Text {
        item_id: &'a str,
        output_index: usize,
        content_index: usize,
        text: &'a str,
        logprobs: &'a [TokenLogprob],
    },
    /// Arguments that a call gets.
    ArgumentsDelta { item_id: &'a str, output_index: usize, delta: &'a str },
    /// All arguments that it has.
    Arguments { item_id: &'a str, output_index: usize, name: &'a str, arguments: &'a str },
}
