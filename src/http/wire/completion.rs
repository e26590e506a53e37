//! `/v1/completions` as it is written on the wire.

use serde::{Deserialize, Serialize, Serializer};
use utoipa::{
    ToSchema,
    openapi::schema::{ObjectBuilder, Type},
};

use super::{
    prompt::{MAX_CHOICES, Prompts},
    shape,
    usage::UsageKey,
};

/// The fields that only completions have.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct CompletionFields {
    #[schema(schema_with = Prompts::<MAX_CHOICES>::shape, required = true)]
    pub(in crate::http) prompt: Prompts<MAX_CHOICES>,
    pub(in crate::http) echo: Option<bool>,
    #[schema(minimum = 0, maximum = 20)]
    pub(in crate::http) logprobs: Option<usize>,
    #[schema(minimum = 0, maximum = 128)]
    pub(in crate::http) best_of: Option<usize>,
    pub(in crate::http) return_token_ids: Option<bool>,
    pub(in crate::http) return_tokens_as_token_ids: Option<bool>,
}

/// `text_completion`, whole or as a chunk: OpenAI has one shape for both.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Completion<'a> {
    pub(in crate::http) id: &'a str,
    pub(in crate::http) object: &'static str,
    pub(in crate::http) created: u64,
    pub(in crate::http) model: &'a str,
    pub(in crate::http) choices: Vec<CompletionChoice>,
    #[serde(skip_serializing_if = "UsageKey::is_absent")]
    pub(in crate::http) usage: UsageKey,
    pub(in crate::http) system_fingerprint: &'a str,
}

/// One answer, or what a chunk adds to it.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct CompletionChoice {
    pub(in crate::http) index: usize,
    pub(in crate::http) text: String,
    pub(in crate::http) logprobs: Option<CompletionLogprobs>,
    pub(in crate::http) finish_reason: Option<&'static str>,
    /// Where they are asked for; of a stream's choice with its first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::http) prompt_token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::http) token_ids: Option<Vec<u32>>,
}

/// Four lists of one length. Nothing predicts a prompt's first token: its scores are null.
#[derive(Debug, Default, PartialEq, Serialize, ToSchema)]
pub(in crate::http) struct CompletionLogprobs {
    pub(in crate::http) tokens: Vec<String>,
    pub(in crate::http) token_logprobs: Vec<Option<f32>>,
    pub(in crate::http) top_logprobs: Vec<Option<Ranking>>,
    /// Where each token begins in `text`, in characters.
    pub(in crate::http) text_offset: Vec<usize>,
}

/// Tokens and their log-probabilities, best first: an object on the wire.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::http) struct Ranking(pub(in crate::http) Vec<(String, f32)>);

shape::shape!(Ranking, "Ranking", {
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .additional_properties(Some(shape::of::<f32>()))
        .into()
});

impl Serialize for Ranking {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(token, logprob)| (token, logprob)))
    }
}
