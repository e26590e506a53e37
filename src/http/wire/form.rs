//! How a request says what its answer must look like: OpenAI's way, and vLLM's two.

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{object::Object, unsupported::Weight};

/// `{"type": "text"}`, `{"type": "json_object"}` or `{"type": "json_schema", "json_schema": {..}}`
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct ResponseFormat {
    #[serde(rename = "type")]
    #[schema(pattern = "^(text|json_object|json_schema)$")]
    pub(in crate::http) kind: String,
    #[schema(value_type = Option<JsonSchema>)]
    pub(in crate::http) json_schema: Option<Object<JsonSchema>>,
    /// Beside `json_object`.
    #[schema(value_type = Option<Object>)]
    pub(in crate::http) schema: Option<Value>,
}

/// The same with the schema beside the type, as LoRAX and Anthropic write it.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct FlatFormat {
    #[serde(rename = "type")]
    #[schema(pattern = "^(text|json_object|json_schema)$")]
    pub(in crate::http) kind: String,
    #[schema(value_type = Option<Object>)]
    pub(in crate::http) schema: Option<Value>,
}

/// `{"name": "..", "schema": {..}}`; its name and `strict` change nothing here: what is answered always fits.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct JsonSchema {
    #[schema(value_type = Option<Object>)]
    pub(in crate::http) schema: Option<Value>,
}

/// vLLM's `structured_outputs`.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(in crate::http) struct StructuredOutputs {
    pub(in crate::http) json: Option<Value>,
    pub(in crate::http) regex: Option<String>,
    #[schema(min_items = 1)]
    pub(in crate::http) choice: Option<Vec<String>>,
    pub(in crate::http) grammar: Option<String>,
    pub(in crate::http) json_object: Option<bool>,
    #[schema(ignore)]
    #[schema(ignore)]
    structural_tag: Option<Weight>,
    #[schema(ignore)]
    whitespace_pattern: Option<Weight>,
    #[schema(ignore)]
    disable_any_whitespace: Option<Weight>,
    #[schema(ignore)]
    disable_additional_properties: Option<Weight>,
}

impl StructuredOutputs {
    /// What would change the form, and is not done.
    pub(in crate::http) fn unsupported(&self) -> [(&'static str, &Option<Weight>); 4] {
        [
            ("structured_outputs.structural_tag", &self.structural_tag),
            ("structured_outputs.whitespace_pattern", &self.whitespace_pattern),
            ("structured_outputs.disable_any_whitespace", &self.disable_any_whitespace),
            (
                "structured_outputs.disable_additional_properties",
                &self.disable_additional_properties,
            ),
        ]
    }
}
