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
    Horizon, Rope, Scaling, Spec, Yarn,
    load::{LoadError, Source, Stored, Tensor},
    mapped::Mapped,
    rope::{mscale, stretched},
};
use crate::{
    kernels::{attention::Heads, panels::Encoding},
    lora::{Norm, Proj, Site},
};

const SUPPORTED: &str = "the Llama family: llama (Llama, Mistral, SmolLM) and qwen2";

/// What each rotary frequency is divided by.
const FACTORS: &str = "rope_freqs.weight";
/// The same for `longrope`, in texts no longer than its first training had.
const SHORT: &str = "rope_factors_short.weight";
/// And in longer ones, which are not served.
const LONG: &str = "rope_factors_long.weight";

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
        let (rope, context) = self.rope(architecture)?;
        let spec = Spec {
            layers: self.needed(&key("block_count"))?,
            hidden,
            heads: Heads { queries, keys, dim, window },
            ffn: self.needed(&key("feed_forward_length"))?,
            vocab: vocab.and_then(|info| info.shape.dims().first().copied()).unwrap_or(0),
            context,
            eps: self.float(&key("attention.layer_norm_rms_epsilon"))?.unwrap_or(1e-5),
            rope,
            qkv_bias: has("blk.0.attn_q.bias"),
            o_bias: has("blk.0.attn_output.bias"),
            mlp_bias: has("blk.0.ffn_up.bias"),
        };
        Ok((spec, interleaved))
    }

    /// The rotary embedding, and how many positions it is good for.
    fn rope(&self, architecture: &str) -> Result<(Rope, usize), LoadError> {
        let key = |name: &str| format!("{architecture}.rope.{name}");
        let theta = self.float(&key("freq_base"))?.unwrap_or(10_000.0);
        let factor = self.float(&key("scaling.factor"))?;
        let context = self.needed(&format!("{architecture}.context_length"))?;
        let original = self.integer(&key("scaling.original_context_length"))?;
        let original = original.filter(|original| *original > 0);
        let rope = |scaling| Rope { theta, scaling, horizon: None };
        match (self.text(&key("scaling.type")), factor) {
            (None | Some("none"), None) | (Some("none"), _) => Ok((rope(Scaling::None), context)),
            (None | Some("linear"), Some(factor)) => Ok((rope(Scaling::Linear(factor)), context)),
            (Some("yarn"), Some(factor)) => {
                let factor = f64::from(factor);
                let yarn = self.yarn(architecture, factor, original.unwrap_or(context))?;
                let longer = original.map_or(0, |original| stretched(original, factor));
                Ok((rope(Scaling::Yarn(yarn)), context.max(longer)))
            }
            (Some("longrope"), _) => {
                let attention = self.float(&key("scaling.attn_factor"))?.unwrap_or(1.0);
                let positions = original.unwrap_or(context).min(context);
                // Its factors are tensors.
                let scaling = Scaling::Long { factors: vec![], attention: f64::from(attention) };
                let horizon = Some(Horizon { kind: "longrope", positions });
                Ok((Rope { theta, scaling, horizon }, positions))
            }
            (Some(kind), _) => {
                Err(self
                    .refuse(format!("rope scaling `{kind}` is not supported, or has no factor")))
            }
        }
    }

    /// What llama.cpp makes of it: the factor of attention is one besides that which follows from the stretching.
    fn yarn(&self, architecture: &str, factor: f64, original: usize) -> Result<Yarn, LoadError> {
        let number = |name: &str| {
            let key = format!("{architecture}.rope.scaling.{name}");
            Ok(self.float(&key)?.map(f64::from).map(|number| (key, number)))
        };
        let value = |name: &str| Ok(number(name)?.map(|(_, number)| number));
        // Other mixtures of the two frequencies, and other ways to write the factor: none that we know of has them.
        for (name, usual) in
            [("yarn_ext_factor", 1.0), ("yarn_attn_factor", 1.0), ("yarn_log_multiplier", 0.0)]
        {
            if let Some((key, number)) = number(name)?
                && (number - usual).abs() > 1e-6
                && !(name == "yarn_ext_factor" && number < 0.0)
            {
                return Err(self.refuse(format!("metadata `{key}` is {number}, not {usual}")));
            }
        }
        Ok(Yarn {
            factor,
            original: original as f64,
            fast: value("yarn_beta_fast")?.unwrap_or(32.0),
            slow: value("yarn_beta_slow")?.unwrap_or(1.0),
            truncate: true,
            attention: mscale(factor, 1.0) * value("attn_factor")?.unwrap_or(1.0),
        })
    }
}

impl Gguf<'_> {
    /// Factors come as tensors: those of Llama 3's scaling and of `longrope`.
    fn with_factors(&self, mut spec: Spec) -> Result<Spec, LoadError> {
        if let Scaling::Long { attention, .. } = spec.rope.scaling {
            let missing = || self.refuse_tensor(SHORT, "its rope scaling `longrope` needs it");
            let factors = self.factors(SHORT)?.ok_or_else(missing)?;
            spec.rope.scaling = Scaling::Long { factors, attention };
        }
        if let Some(factors) = self.factors(FACTORS)? {
            if spec.rope.scaling != Scaling::None {
                return Err(self.refuse_tensor(FACTORS, "factors are the only scaling"));
            }
            // Ones are how a converter says that there is no scaling.
            if factors.iter().any(|factor| factor.to_bits() != 1.0_f32.to_bits()) {
                spec.rope.scaling = Scaling::Factors(factors);
            }
        }
        Ok(spec)
    }

    /// Numbers of type f32.
    fn factors(&self, name: &str) -> Result<Option<Vec<f32>>, LoadError> {
        let Some(stored) = self.stored(name)? else { return Ok(None) };
        if stored.encoding != Encoding::F32 {
            return Err(self.refuse_tensor(name, "factors are f32"));
        }
        let values = stored.bytes.as_chunks::<4>().0.iter();
        Ok(Some(values.map(|bytes| f32::from_le_bytes(*bytes)).collect()))
    }

    fn refuse_tensor(&self, tensor: &str, why: &str) -> LoadError {
        let (path, tensor) = (self.path.clone(), tensor.to_owned());
        LoadError::Tensor { path, tensor, why: why.to_owned() }
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

    /// The factors were read with the rest of the rotary embedding, or are for texts that are not served.
    fn is_spare(&self, name: &str) -> bool {
        let long = matches!(self.spec.rope.scaling, Scaling::Long { .. });
        name == FACTORS || (long && [SHORT, LONG].contains(&name))
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
    use std::collections::HashMap;

    use candle_core::quantized::gguf_file::{TensorInfo, VersionedMagic};

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

    /// Metadata of a base with heads of 64 and a context of 4096, and these.
    fn content(more: &[(&str, Value)]) -> Content {
        let own = [("freq_base", Value::F32(10_000.0))].into_iter().chain(more.iter().cloned());
        let mut metadata: HashMap<_, _> =
            own.map(|(key, value)| (format!("llama.rope.{key}"), value)).collect();
        metadata.insert("llama.context_length".to_owned(), Value::U32(4096));
        let tensor_infos = HashMap::new();
        Content { magic: VersionedMagic::GgufV3, metadata, tensor_infos, tensor_data_offset: 0 }
    }

    fn rope(more: &[(&str, Value)]) -> Result<(Rope, usize), String> {
        let content = content(more);
        let rope = Metadata { path: Path::new("a.gguf"), content: &content }.rope("llama");
        rope.map_err(|why| why.to_string())
    }

    #[test]
    fn yarn_is_read_as_llama_cpp_writes_it() {
        let yarn = ("scaling.type", Value::String("yarn".into()));
        let factor = ("scaling.factor", Value::F32(4.0));
        let original = ("scaling.original_context_length", Value::U32(4096));
        let (stretched, context) = rope(&[yarn.clone(), factor.clone(), original.clone()]).unwrap();
        let plain = Yarn {
            factor: 4.0,
            original: 4096.0,
            fast: 32.0,
            slow: 1.0,
            truncate: true,
            attention: 1.0 + 0.1 * 4.0_f64.ln(),
        };
        assert_eq!((stretched.scaling, context), (Scaling::Yarn(plain.clone()), 16_384));
        let more = [
            ("scaling.attn_factor", Value::F32(0.5)),
            ("scaling.yarn_beta_fast", Value::F32(24.0)),
            ("scaling.yarn_beta_slow", Value::F32(2.0)),
            ("scaling.yarn_ext_factor", Value::F32(-1.0)),
        ];
        let more = more.into_iter().chain([yarn.clone(), factor.clone()]).collect::<Vec<_>>();
        let (stretched, context) = rope(&more).unwrap();
        let attention = plain.attention / 2.0;
        let want = Yarn { fast: 24.0, slow: 2.0, attention, ..plain };
        assert_eq!((stretched.scaling, context), (Scaling::Yarn(want), 4096));
        for (key, value) in [
            ("scaling.yarn_ext_factor", 0.5),
            ("scaling.yarn_attn_factor", 2.0),
            ("scaling.yarn_log_multiplier", 0.1),
        ] {
            let odd = [yarn.clone(), factor.clone(), (key, Value::F32(value))];
            let why = rope(&odd).unwrap_err();
            assert!(why.contains(key), "{why}");
        }
        assert!(rope(&[yarn]).unwrap_err().contains("`yarn` is not supported, or has no factor"));
    }

    #[test]
    fn longrope_is_served_with_its_short_factors_up_to_its_first_context() {
        let metadata = [
            ("scaling.type", Value::String("longrope".into())),
            ("scaling.attn_factor", Value::F32(1.25)),
            ("scaling.original_context_length", Value::U32(1024)),
        ];
        let (rope, context) = rope(&metadata).unwrap();
        let horizon = Some(Horizon { kind: "longrope", positions: 1024 });
        assert_eq!((context, rope.horizon), (1024, horizon));
        let spec = Spec {
            layers: 1,
            hidden: 64,
            heads: Heads { queries: 1, keys: 1, dim: 64, window: None },
            ffn: 64,
            vocab: 9,
            context,
            eps: 1e-5,
            rope,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
        };
        assert!(spec.check().is_err(), "without its factors it is nothing");
        let factors: Vec<f32> = (0..32_u8).map(|at| 1.0 + f32::from(at)).collect();
        let bytes: Vec<u8> = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
        let mut content = content(&metadata);
        let path = PathBuf::from("a.gguf");
        let without = Gguf {
            path: path.clone(),
            bytes: &bytes,
            content: self::content(&metadata),
            spec: spec.clone(),
            interleaved: true,
        };
        let why = without.with_factors(spec.clone()).unwrap_err().to_string();
        assert!(why.contains(SHORT), "{why}");
        for name in [SHORT, LONG] {
            let info = TensorInfo { ggml_dtype: GgmlDType::F32, shape: 32.into(), offset: 0 };
            content.tensor_infos.insert(name.to_owned(), info);
        }
        let with = Gguf { path, bytes: &bytes, content, spec: spec.clone(), interleaved: true };
        let spec = with.with_factors(spec).unwrap();
        assert_eq!(spec.rope.scaling, Scaling::Long { factors, attention: 1.25 });
        assert_eq!(spec.check(), Ok(()));
        assert!([SHORT, LONG, FACTORS].into_iter().all(|name| with.is_spare(name)));
    }
}
