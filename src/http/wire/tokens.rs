//! `/tokenize` and `/detokenize` as they are written on the wire (vLLM's shape).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{content::MessageIn, object::Object, tools::ToolIn};

/// Either `prompt` or `messages`.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(in crate::http) struct Tokenize {
    pub(in crate::http) model: Option<String>,
    pub(in crate::http) prompt: Option<String>,
    #[schema(min_items = 1)]
    #[schema(value_type = Option<Vec<MessageIn>>)]
    pub(in crate::http) messages: Option<Vec<Object<MessageIn>>>,
    #[schema(value_type = Option<Vec<ToolIn>>)]
    pub(in crate::http) tools: Option<Vec<Object<ToolIn>>>,
    pub(in crate::http) add_special_tokens: Option<bool>,
    pub(in crate::http) add_generation_prompt: Option<bool>,
    pub(in crate::http) continue_final_message: Option<bool>,
}

/// The ids of a text.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Tokenized {
    pub(in crate::http) count: usize,
    pub(in crate::http) max_model_len: usize,
    pub(in crate::http) tokens: Vec<u32>,
}

/// Ids to turn into text.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct Detokenize {
    pub(in crate::http) model: Option<String>,
    pub(in crate::http) tokens: Vec<u32>,
}

/// The text of some ids.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Detokenized {
    pub(in crate::http) prompt: String,
}
