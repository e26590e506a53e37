//! The fields that chats and completions share. `null` is absent, unknown fields are overlooked.

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    form::{ResponseFormat, StructuredOutputs},
    list::{Biases, Strings},
    object::Object,
};

/// As sent; ranges are checked where the fields get their meaning.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(in crate::http) struct Common {
    pub(in crate::http) model: Option<String>,
    /// Several adapters, in the place of one.
    #[schema(value_type = Option<Vec<AdapterPart>>, min_items = 1, max_items = 8)]
    pub(in crate::http) adapters: Option<Vec<Object<AdapterPart>>>,
    /// Who asks, as the client tells its own users apart.
    pub(in crate::http) user: Option<String>,
    #[schema(minimum = 1, maximum = 128)]
    pub(in crate::http) n: Option<usize>,

    #[schema(value_type = Option<ResponseFormat>)]
    pub(in crate::http) response_format: Option<Object<ResponseFormat>>,
    #[schema(value_type = Option<StructuredOutputs>)]
    pub(in crate::http) structured_outputs: Option<Object<StructuredOutputs>>,
    pub(in crate::http) guided_json: Option<Value>,
    pub(in crate::http) guided_regex: Option<String>,
    #[schema(min_items = 1)]
    pub(in crate::http) guided_choice: Option<Vec<String>>,
    pub(in crate::http) guided_grammar: Option<String>,

    pub(in crate::http) stream: Option<bool>,
    #[schema(value_type = Option<StreamOptions>)]
    pub(in crate::http) stream_options: Option<Object<StreamOptions>>,

    #[schema(minimum = 0, maximum = 2)]
    pub(in crate::http) temperature: Option<f64>,
    #[schema(minimum = 0, maximum = 1)]
    pub(in crate::http) top_p: Option<f64>,
    #[schema(minimum = -1, maximum = 4_294_967_295_i64)]
    pub(in crate::http) top_k: Option<i64>,
    #[schema(minimum = 0, maximum = 1)]
    pub(in crate::http) min_p: Option<f64>,
    #[schema(minimum = 0.01, maximum = 100)]
    pub(in crate::http) repetition_penalty: Option<f64>,
    #[schema(minimum = -2, maximum = 2)]
    pub(in crate::http) presence_penalty: Option<f64>,
    #[schema(minimum = -2, maximum = 2)]
    pub(in crate::http) frequency_penalty: Option<f64>,
    pub(in crate::http) logit_bias: Option<Biases>,
    pub(in crate::http) seed: Option<i64>,

    pub(in crate::http) max_tokens: Option<usize>,
    pub(in crate::http) min_tokens: Option<usize>,
    pub(in crate::http) stop: Option<Strings>,
    #[schema(max_items = 128)]
    pub(in crate::http) stop_token_ids: Option<Vec<u32>>,
    pub(in crate::http) include_stop_str_in_output: Option<bool>,
    pub(in crate::http) ignore_eos: Option<bool>,

    #[schema(min_length = 1, max_length = 1024)]
    pub(in crate::http) cache_salt: Option<String>,

    pub(in crate::http) add_special_tokens: Option<bool>,
    pub(in crate::http) skip_special_tokens: Option<bool>,
}

/// `{"include_usage": true}`
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(in crate::http) struct StreamOptions {
    pub(in crate::http) include_usage: Option<bool>,
}

/// `{"name": "a", "scale": 0.7}`. What else it had would be another mix.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct AdapterPart {
    pub(in crate::http) name: String,
    /// `weight` says the same.
    #[serde(alias = "weight")]
    #[schema(minimum = -16, maximum = 16)]
    pub(in crate::http) scale: Option<f64>,
}
