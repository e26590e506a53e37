//! `/v1/embeddings` as it is written on the wire.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

use super::{common::AdapterPart, object::Object, prompt::Prompts, shape};

/// The most inputs of one request: OpenAI's own bound.
pub(in crate::http) const MAX_INPUTS: usize = 2048;

/// What embeddings are asked for. `null` is absent, unknown fields are overlooked.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct EmbeddingFields {
    pub(in crate::http) model: Option<String>,
    /// Who asks, as the client tells its own users apart.
    pub(in crate::http) user: Option<String>,
    /// Several adapters, in the place of one.
    #[schema(value_type = Option<Vec<AdapterPart>>, min_items = 1, max_items = 8)]
    pub(in crate::http) adapters: Option<Vec<Object<AdapterPart>>>,
    #[schema(schema_with = Prompts::<MAX_INPUTS>::shape, required = true)]
    pub(in crate::http) input: Prompts<MAX_INPUTS>,
    pub(in crate::http) encoding_format: Option<Format>,
    #[schema(minimum = 1)]
    pub(in crate::http) dimensions: Option<usize>,
    /// OpenAI has no such field.
    pub(in crate::http) pooling: Option<Pooling>,
    /// Nor this one, which vLLM has.
    #[schema(schema_with = shape::yes)]
    pub(in crate::http) normalize: Option<bool>,
    pub(in crate::http) add_special_tokens: Option<bool>,
    #[schema(min_length = 1, max_length = 1024)]
    pub(in crate::http) cache_salt: Option<String>,
}

/// How vectors are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = EmbeddingFormat)]
pub(in crate::http) enum Format {
    /// As lists of numbers.
    #[default]
    Float,
    /// As base64 of their little-endian `f32`, which takes half of that. OpenAI's Python client asks for it where its caller says
    /// nothing.
    Base64,
}

/// Which states make a vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::http) enum Pooling {
    /// All.
    #[default]
    Mean,
    /// That of the last token.
    Last,
}

/// The vectors of all inputs.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Embeddings<'a> {
    pub(in crate::http) object: &'static str,
    pub(in crate::http) data: Vec<Embedding>,
    pub(in crate::http) model: &'a str,
    pub(in crate::http) usage: EmbeddingUsage,
}

/// The vector of one input.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Embedding {
    pub(in crate::http) object: &'static str,
    pub(in crate::http) index: usize,
    #[serde(rename = "embedding")]
    pub(in crate::http) vector: Vector,
}

/// A vector in its format.
#[derive(Debug)]
pub(in crate::http) struct Vector {
    pub(in crate::http) format: Format,
    pub(in crate::http) numbers: Vec<f32>,
}

shape::shape!(
    Vector,
    "Vector",
    shape::any_of([shape::list(shape::of::<f32>(), None, None), shape::text()])
);

impl Serialize for Vector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.format {
            Format::Float => self.numbers.serialize(serializer),
            Format::Base64 => {
                let bytes: Vec<u8> =
                    self.numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
                serializer.serialize_str(&STANDARD.encode(bytes))
            }
        }
    }
}

/// Nothing is generated.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(in crate::http) struct EmbeddingUsage {
    pub(in crate::http) prompt_tokens: usize,
    pub(in crate::http) total_tokens: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_numbers_or_their_bytes() {
        let write = |format| {
            let vector = Vector { format, numbers: vec![1.0, -0.1, f32::MIN_POSITIVE] };
            serde_json::to_string(&vector).unwrap()
        };
        assert_eq!(write(Format::Float), "[1.0,-0.1,1.1754944e-38]");
        // 0000803f cdccccbd 00008000
        assert_eq!(write(Format::Base64), r#""AACAP83MzL0AAIAA""#);
    }
}
