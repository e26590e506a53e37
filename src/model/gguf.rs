//! Bases in GGUF (the specification is in ggml's `docs/gguf.md`).

use std::{
    io::Cursor,
    path::{Path, PathBuf},
};

use candle_core::quantized::{
    GgmlDType,
    gguf_file::{Content, Value},
};

use super::{
    Rope, Scaling, Spec,
    load::{LoadError, Source, Stored, Tensor},
    mapped::Mapped,
};
use crate::{
    kernels::{attention::Heads, panels::Encoding},
    lora::{Norm, Proj, Site},
};

const SUPPORTED: &str = "the Llama family: llama (Llama, Mistral, SmolLM) and qwen2";

/// What each rotary frequency is divided by.
const FACTORS: &str = "rope_freqs.weight";

/// Metadata and tensor list lie within so many bytes. The vocabularies of today take a tenth of it.
const HEAD: usize = 64 << 20;

/// An opened file.
pub(super) struct Gguf<'a> {
    path: PathBuf,
    bytes: &'a [u8],
    content: Content,
    spec: Spec,
    /// Rows of q and k lie in the order that llama.cpp's `llama` wants: pairs of dimensions side by side.
    interleaved: bool,
}

/// Opens `path` and hands its spec and weights to `load`.
pub(super) fn with<T>(
    path: &Path,
    load: impl FnOnce(Spec, &dyn Source) -> Result<T, LoadError>,
) -> Result<T, LoadError> {
    let io = |source| LoadError::Io { path: path.to_owned(), source };
    let format = |why| LoadError::Format { path: path.to_owned(), kind: "GGUF file", why };
    let mapped = Mapped::open(path).map_err(io)?;
    if !mapped.starts_with(b"GGUF") {
        return Err(format("it does not begin with `GGUF`".to_owned()));
    }
    let head = &mapped[..mapped.len().min(HEAD)];
    if aligned_to_nothing(head) {
        return Err(format("its `general.alignment` is 0".to_owned()));
    }
    let content = Content::read(&mut Cursor::new(head))
        .map_err(|why| format(format!("{}; is the download complete?", first_line(&why))))?;
    let (spec, interleaved) = Metadata { path, content: &content }.spec()?;
    let gguf =
        Gguf { path: path.to_owned(), bytes: &mapped, content, spec: spec.clone(), interleaved };
    let spec = gguf.with_factors(spec)?;
    load(spec, &gguf)
}

/// Whether the metadata says that tensors lie at multiples of 0, by which candle's reader would divide.
fn aligned_to_nothing(head: &[u8]) -> bool {
    const KEY: &[u8] = b"general.alignment";
    let Some(at) = head.windows(KEY.len()).position(|bytes| bytes == KEY) else { return false };
    let Some((kind, value)) = head[at + KEY.len()..].split_first_chunk() else { return false };
    // The integer types of the format's values, by their numbers there.
    let width = match u32::from_le_bytes(*kind) {
        0 | 1 => 1,
        2 | 3 => 2,
        4 | 5 => 4,
        10 | 11 => 8,
        _ => return false,
    };
    value.get(..width).is_some_and(|value| value.iter().all(|byte| *byte == 0))
}

/// candle's errors carry backtraces below their first line.
fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

struct Metadata<'a> {
    path: &'a Path,
    content: &'a Content,
}

impl Metadata<'_> {
    fn refuse(&self, why: String) -> LoadError {
        LoadError::Spec { path: self.path.to_owned(), why }
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.value(key)?.to_string().ok().map(String::as_str)
    }

    fn integer(&self, key: &str) -> Result<Option<usize>, LoadError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let number = match value {
            Value::U8(v) => Some(u64::from(*v)),
            Value::U16(v) => Some(u64::from(*v)),
            Value::U32(v) => Some(u64::from(*v)),
            Value::U64(v) => Some(*v),
            Value::I32(v) => u64::try_from(*v).ok(),
            Value::I64(v) => u64::try_from(*v).ok(),
            _ => None,
        };
        let number = number.and_then(|number| usize::try_from(number).ok());
        number.map(Some).ok_or_else(|| self.refuse(format!("metadata `{key}` is no count")))
    }

    fn needed(&self, key: &str) -> Result<usize, LoadError> {
        self.integer(key)?.ok_or_else(|| self.refuse(format!("metadata `{key}` is missing")))
    }

    fn float(&self, key: &str) -> Result<Option<f32>, LoadError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.to_f32() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(self.refuse(format!("metadata `{key}` is no number"))),
        }
    }

    fn spec(&self) -> Result<(Spec, bool), LoadError> {
        let architecture = self.text("general.architecture").unwrap_or("");
        let interleaved = match architecture {
            "llama" => true,
            "qwen2" => false,
            other => {
                let (path, architecture) = (self.path.to_owned(), other.to_owned());
                return Err(LoadError::Architecture { path, architecture, supported: SUPPORTED });
            }
        };
        let key = |name: &str| format!("{architecture}.{name}");
        if self.integer(&key("expert_count"))?.is_some_and(|experts| experts > 0) {
            return Err(self.refuse("it is a mixture of experts, which is not supported".into()));
        }
        let hidden = self.needed(&key("embedding_length"))?;
        let queries = self.needed(&key("attention.head_count"))?;
        let keys = self.integer(&key("attention.head_count_kv"))?.unwrap_or(queries);
        let dim = match self.integer(&key("attention.key_length"))? {
            Some(dim) => dim,
            None => hidden.checked_div(queries).unwrap_or(0),
        };
        if self.integer(&key("rope.dimension_count"))?.is_some_and(|rotated| rotated != dim) {
            return Err(self.refuse("it turns only a part of each head (partial rotary)".into()));
        }
        let window = self.integer(&key("attention.sliding_window"))?;
        let has = |tensor: &str| self.content.tensor_infos.contains_key(tensor);
        let vocab = self.content.tensor_infos.get("token_embd.weight");
        let spec = Spec {
            layers: self.needed(&key("block_count"))?,
            hidden,
            heads: Heads { queries, keys, dim, window },
            ffn: self.needed(&key("feed_forward_length"))?,
            vocab: vocab.and_then(|info| info.shape.dims().first().copied()).unwrap_or(0),
            context: self.needed(&key("context_length"))?,
            eps: self.float(&key("attention.layer_norm_rms_epsilon"))?.unwrap_or(1e-5),
            rope: self.rope(architecture)?,
            qkv_bias: has("blk.0.attn_q.bias"),
            o_bias: has("blk.0.attn_output.bias"),
            mlp_bias: has("blk.0.ffn_up.bias"),
        };
        Ok((spec, interleaved))
    }

    fn rope(&self, architecture: &str) -> Result<Rope, LoadError> {
        let key = |name: &str| format!("{architecture}.rope.{name}");
        let theta = self.float(&key("freq_base"))?.unwrap_or(10_000.0);
        let factor = self.float(&key("scaling.factor"))?;
        let scaling = match (self.text(&key("scaling.type")), factor) {
            (None | Some("none"), None) | (Some("none"), _) => Scaling::None,
            (None | Some("linear"), Some(factor)) => Scaling::Linear(factor),
            (Some(kind), _) => {
                return Err(self.refuse(format!("rope scaling `{kind}` is not supported")));
            }
        };
        Ok(Rope { theta, scaling })
    }
}

impl Gguf<'_> {
    /// Llama 3's scaling comes as a tensor of factors.
    fn with_factors(&self, mut spec: Spec) -> Result<Spec, LoadError> {
        if let Some(stored) = self.stored(FACTORS)? {
            let values = stored.bytes.as_chunks::<4>().0.iter();
            let factors: Vec<f32> = values.map(|bytes| f32::from_le_bytes(*bytes)).collect();
            if stored.encoding != Encoding::F32 || spec.rope.scaling != Scaling::None {
                let why = "factors are f32 and the only scaling".to_owned();
                return Err(LoadError::Tensor {
                    path: self.path.clone(),
                    tensor: FACTORS.into(),
                    why,
                });
            }
            // Ones are how a converter says that there is no scaling.
            if factors.iter().any(|factor| factor.to_bits() != 1.0_f32.to_bits()) {
                spec.rope.scaling = Scaling::Factors(factors);
            }
        }
        Ok(spec)
    }

    fn stored(&self, name: &str) -> Result<Option<Stored<'_>>, LoadError> {
        let Some(info) = self.content.tensor_infos.get(name) else { return Ok(None) };
        let refuse = |why: String| {
            Err(LoadError::Tensor { path: self.path.clone(), tensor: name.to_owned(), why })
        };
        let encoding = match info.ggml_dtype {
            GgmlDType::F32 => Encoding::F32,
            GgmlDType::F16 => Encoding::F16,
            GgmlDType::BF16 => Encoding::BF16,
            GgmlDType::Q4_0 => Encoding::Q4_0,
            GgmlDType::Q4_1 => Encoding::Q4_1,
            GgmlDType::Q5_0 => Encoding::Q5_0,
            GgmlDType::Q5_1 => Encoding::Q5_1,
            GgmlDType::Q8_0 => Encoding::Q8_0,
            GgmlDType::Q4K => Encoding::Q4_K,
            GgmlDType::Q5K => Encoding::Q5_K,
            GgmlDType::Q6K => Encoding::Q6_K,
            other => return refuse(format!("its type {other:?} is not supported")),
        };
        let shape = info.shape.dims().to_vec();
        let inputs = shape.last().copied().unwrap_or(1);
        let rows: Option<usize> =
            shape.iter().rev().skip(1).try_fold(1_usize, |rows, dim| rows.checked_mul(*dim));
        let len =
            encoding.row_bytes(inputs).zip(rows).and_then(|(row, rows)| row.checked_mul(rows));
        let start = self.content.tensor_data_offset.checked_add(info.offset);
        let start = start.and_then(|start| usize::try_from(start).ok());
        let range = start.zip(len).and_then(|(start, len)| Some(start..start.checked_add(len)?));
        match range.and_then(|range| self.bytes.get(range)) {
            Some(bytes) => Ok(Some(Stored { encoding, shape, bytes })),
            None => refuse(format!(
                "{shape:?} as {encoding:?} does not lie within the file's {} bytes; is the download complete?",
                self.bytes.len()
            )),
        }
    }
}

impl Source for Gguf<'_> {
    fn name(&self, tensor: Tensor) -> String {
        let proj = |proj| match proj {
            Proj::Q => "attn_q",
            Proj::K => "attn_k",
            Proj::V => "attn_v",
            Proj::O => "attn_output",
            Proj::Gate => "ffn_gate",
            Proj::Up => "ffn_up",
            Proj::Down => "ffn_down",
        };
        let site = |site, kind| match site {
            Site::Embed => format!("token_embd.{kind}"),
            Site::Head => format!("output.{kind}"),
            Site::Layer(layer, p) => format!("blk.{layer}.{}.{kind}", proj(p)),
        };
        match tensor {
            Tensor::Weight(at) => site(at, "weight"),
            Tensor::Bias(at) => site(at, "bias"),
            Tensor::Gain(Norm::Attention(layer)) => format!("blk.{layer}.attn_norm.weight"),
            Tensor::Gain(Norm::FeedForward(layer)) => format!("blk.{layer}.ffn_norm.weight"),
            Tensor::Gain(Norm::Final) => "output_norm.weight".to_owned(),
        }
    }

    fn tensor(&self, tensor: Tensor) -> Result<Option<Stored<'_>>, LoadError> {
        self.stored(&self.name(tensor))
    }

    /// The converter of llama.cpp lays rows `j * dim / 2 + i` of a head of q or k at `2 i + j`.
    fn row(&self, site: Site, row: usize) -> usize {
        let dim = self.spec.heads.dim;
        match site {
            Site::Layer(_, Proj::Q | Proj::K) if self.interleaved => {
                let (head, within) = (row / dim * dim, row % dim);
                head + within % (dim / 2) * 2 + within / (dim / 2)
            }
            _ => row,
        }
    }

    fn names(&self) -> Vec<&str> {
        self.content.tensor_infos.keys().map(String::as_str).collect()
    }

    /// The factors were read with the rest of the rotary embedding.
    fn is_spare(&self, name: &str) -> bool {
        name == FACTORS
    }

    /// The format has no other word for it.
    fn may_tie(&self) -> bool {
        true
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// candle's reader divides by it.
    #[test]
    fn an_alignment_of_zero_is_found_in_every_integer_type() {
        let head = |kind: u32, value: &[u8]| {
            [b"GGUF..", b"general.alignment".as_slice(), &kind.to_le_bytes(), value].concat()
        };
        for (kind, width) in [(0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (10, 8), (11, 8)] {
            assert!(aligned_to_nothing(&head(kind, &vec![0; width])), "type {kind}");
            assert!(!aligned_to_nothing(&head(kind, &vec![32; width])), "type {kind}");
            assert!(!aligned_to_nothing(&head(kind, &vec![0; width - 1])), "cut off");
        }
        assert!(!aligned_to_nothing(&head(6, &[0; 4])), "a float is no alignment");
        assert!(!aligned_to_nothing(b"GGUF"));
    }
}
