//! `/generate` and its like as LoRAX writes them on the wire.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{form::FlatFormat, list::Strings, object::Object, unsupported::Weight};

/// What is sent.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct Generate {
    #[schema(min_length = 1)]
    pub(in crate::http) inputs: String,
    #[schema(value_type = Option<Parameters>)]
    pub(in crate::http) parameters: Option<Object<Parameters>>,
    /// Counts on `POST /` alone.
    pub(in crate::http) stream: Option<bool>,
    #[schema(ignore)]
    pub(in crate::http) adapters: Option<Weight>,
    /// `parameters` is the place for it.
    #[schema(ignore)]
    pub(in crate::http) adapter_id: Option<Weight>,
    #[schema(ignore)]
    pub(in crate::http) model: Option<Weight>,
}

/// How it is to be continued. `null` is absent; the token for hubs, and whatever else is unknown, is overlooked.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(in crate::http) struct Parameters {
    pub(in crate::http) adapter_id: Option<String>,
    #[schema(pattern = "^(local)?$")]
    pub(in crate::http) adapter_source: Option<String>,

    pub(in crate::http) do_sample: Option<bool>,
    #[schema(minimum = 0, maximum = 2)]
    pub(in crate::http) temperature: Option<f64>,
    #[schema(minimum = -1, maximum = 4_294_967_295_i64)]
    pub(in crate::http) top_k: Option<i64>,
    #[schema(minimum = 0, maximum = 1)]
    pub(in crate::http) top_p: Option<f64>,
    #[schema(ignore)]
    pub(in crate::http) typical_p: Option<f64>,
    #[schema(minimum = 0.01, maximum = 100)]
    pub(in crate::http) repetition_penalty: Option<f64>,
    #[schema(minimum = -2, maximum = 2)]
    pub(in crate::http) presence_penalty: Option<f64>,
    #[schema(minimum = -2, maximum = 2)]
    pub(in crate::http) frequency_penalty: Option<f64>,
    pub(in crate::http) seed: Option<u64>,
    #[schema(minimum = 0, maximum = 1)]
    pub(in crate::http) best_of: Option<usize>,

    #[schema(minimum = 1)]
    pub(in crate::http) max_new_tokens: Option<usize>,
    pub(in crate::http) stop: Option<Strings>,
    pub(in crate::http) ignore_eos_token: Option<bool>,

    pub(in crate::http) return_full_text: Option<bool>,
    pub(in crate::http) details: Option<bool>,
    pub(in crate::http) decoder_input_details: Option<bool>,
    #[schema(minimum = 1, maximum = 20)]
    pub(in crate::http) return_k_alternatives: Option<usize>,

    #[schema(ignore)]
    pub(in crate::http) apply_chat_template: Option<Weight>,
    #[schema(ignore)]
    pub(in crate::http) grammar: Option<Weight>,
    #[schema(ignore)]
    pub(in crate::http) merged_adapters: Option<Weight>,
    #[schema(value_type = Option<FlatFormat>)]
    pub(in crate::http) response_format: Option<Object<FlatFormat>>,
    #[schema(ignore)]
    pub(in crate::http) schema: Option<Weight>,
    #[schema(ignore)]
    pub(in crate::http) adapters: Option<Weight>,
    #[schema(ignore)]
    pub(in crate::http) model: Option<Weight>,
    #[schema(ignore)]
    pub(in crate::http) truncate: Option<Weight>,
    #[schema(ignore)]
    pub(in crate::http) watermark: Option<Weight>,
}

/// A whole answer.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Generated {
    pub(in crate::http) generated_text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::http) details: Option<Details>,
}

/// A whole answer by the path that it was asked on.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::http) enum Packed {
    /// As it is.
    Bare(Generated),
    /// In a list of one.
    Listed([Generated; 1]),
}

/// What a whole answer was made of.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Details {
    #[serde(flatten)]
    pub(in crate::http) end: StreamDetails,
    pub(in crate::http) prefill: Vec<PrefillToken>,
    pub(in crate::http) tokens: Vec<Token>,
}

/// How an answer ended and what it cost.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(in crate::http) struct StreamDetails {
    pub(in crate::http) finish_reason: &'static str,
    pub(in crate::http) prompt_tokens: usize,
    pub(in crate::http) generated_tokens: usize,
    /// `null` where nothing was drawn.
    pub(in crate::http) seed: Option<u64>,
}

/// A token of the prompt. Nothing predicts the first: its score is `null`.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(in crate::http) struct PrefillToken {
    pub(in crate::http) id: u32,
    pub(in crate::http) text: String,
    pub(in crate::http) logprob: Option<f32>,
}

/// A token of the answer and the text that it adds.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(in crate::http) struct Token {
    #[serde(flatten)]
    pub(in crate::http) chosen: Alternative,
    pub(in crate::http) special: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::http) alternative_tokens: Option<Vec<Alternative>>,
}

/// A token that might have come, or that has.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(in crate::http) struct Alternative {
    pub(in crate::http) id: u32,
    pub(in crate::http) text: String,
    pub(in crate::http) logprob: f32,
}

/// One event: a token, with the last of them the whole text and how it ended.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct GeneratedToken {
    pub(in crate::http) token: Token,
    pub(in crate::http) generated_text: Option<String>,
    pub(in crate::http) details: Option<StreamDetails>,
}
