//! Bases as directories in Hugging Face layout: `config.json` and safetensors, one file or shards with an index.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Rope, Spec,
    load::{LoadError, Source, Stored, Tensor},
    mapped::Mapped,
    rope::{self, Given},
};
use crate::{
    kernels::{attention::Heads, panels::Encoding},
    lora::Site,
};

const SUPPORTED: &str = "LlamaForCausalLM, MistralForCausalLM and Qwen2ForCausalLM";
const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Larger than any `config.json` or index there is.
const JSON_BYTES: u64 = 64 << 20;

/// The parts of `config.json` that shape the network. Unknown keys are other people's business.
#[derive(Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    clippy::struct_field_names,
    reason = "the file's own keys"
)]
struct Config {
    architectures: Option<Vec<String>>,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    original_max_position_embeddings: Option<usize>,
    rms_norm_eps: f32,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    hidden_act: Option<String>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    partial_rotary_factor: Option<f32>,
    rope_theta: Option<f32>,
    rope_scaling: Option<Value>,
    /// Where transformers 5 keeps theta and scaling.
    rope_parameters: Option<Value>,
    quantization_config: Option<Value>,
}

/// An opened directory.
pub(super) struct Directory {
    path: PathBuf,
    shards: Vec<Mapped>,
    /// Which shard a tensor is in.
    shard_of: HashMap<String, usize>,
    /// The head is the embedding, whatever the file has beside it.
    tied: bool,
}

/// Opens a directory: its spec, and its weights by name.
pub(super) fn open(path: &Path) -> Result<(Spec, Directory), LoadError> {
    let at = path.join(CONFIG);
    if !at.exists() {
        let why = "it has no config.json; give the directory that holds it beside *.safetensors and \
                   tokenizer.json, or a .gguf file";
        let kind = "Hugging Face directory";
        return Err(LoadError::Format { path: path.to_owned(), kind, why: why.to_owned() });
    }
    let config: Config = json(&at)?;
    let spec = spec(&config).map_err(|why| match why {
        Refused::Architecture(architecture) => {
            LoadError::Architecture { path: at.clone(), architecture, supported: SUPPORTED }
        }
        Refused::Because(why) => LoadError::Spec { path: at.clone(), why },
    })?;
    Ok((spec, Directory { tied: config.tie_word_embeddings, ..Directory::map(path)? }))
}

fn json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, LoadError> {
    let io = |source| LoadError::Io { path: path.to_owned(), source };
    let bytes = std::fs::metadata(path).map_err(io)?.len();
    let format = |why| LoadError::Format { path: path.to_owned(), kind: "JSON file", why };
    if bytes > JSON_BYTES {
        return Err(format(format!("it has {bytes} bytes")));
    }
    serde_json::from_slice(&std::fs::read(path).map_err(io)?).map_err(|why| format(why.to_string()))
}

enum Refused {
    Architecture(String),
    Because(String),
}

fn spec(config: &Config) -> Result<Spec, Refused> {
    let because = |why: &str| Err(Refused::Because(why.to_owned()));
    let architecture = config.architectures.as_ref().and_then(|all| all.first());
    let architecture = architecture.map_or("", String::as_str);
    let qwen2 = match architecture {
        "LlamaForCausalLM" | "MistralForCausalLM" => false,
        "Qwen2ForCausalLM" => true,
        other => return Err(Refused::Architecture(other.to_owned())),
    };
    if config.quantization_config.is_some() {
        return because(
            "its weights are quantized (quantization_config); take the original or a GGUF",
        );
    }
    if config.hidden_act.as_deref().is_some_and(|act| act != "silu") {
        return because("its activation (hidden_act) is not silu");
    }
    if config.partial_rotary_factor.is_some_and(|part| part < 1.0) {
        return because("it turns only a part of each head (partial_rotary_factor)");
    }
    if qwen2 && config.use_sliding_window == Some(true) {
        return because("use_sliding_window is not supported for Qwen2");
    }
    let queries = config.num_attention_heads;
    let dim = config.head_dim.or_else(|| config.hidden_size.checked_div(queries)).unwrap_or(0);
    let window = if architecture == "MistralForCausalLM" { config.sliding_window } else { None };
    let keys = config.num_key_value_heads.unwrap_or(queries);
    let (rope, context) = rope(config).map_err(Refused::Because)?;
    Ok(Spec {
        layers: config.num_hidden_layers,
        hidden: config.hidden_size,
        heads: Heads { queries, keys, dim, window },
        ffn: config.intermediate_size,
        vocab: config.vocab_size,
        context,
        eps: config.rms_norm_eps,
        rope,
        qkv_bias: qwen2 || config.attention_bias,
        o_bias: !qwen2 && config.attention_bias,
        mlp_bias: !qwen2 && config.mlp_bias,
    })
}

/// The rotary embedding, and how many positions it is good for.
fn rope(config: &Config) -> Result<(Rope, usize), String> {
    let set = |value: &&Value| !value.is_null();
    let written = config.rope_parameters.as_ref().filter(set);
    if let (Some(_), Some(scaling)) = (written, config.rope_scaling.as_ref().filter(set)) {
        return Err(format!("it has rope_parameters and rope_scaling {scaling} too"));
    }
    let given = Given {
        theta: config.rope_theta,
        context: config.max_position_embeddings,
        original: config.original_max_position_embeddings,
    };
    rope::read(written.or(config.rope_scaling.as_ref()), given)
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Directory {
    fn map(path: &Path) -> Result<Self, LoadError> {
        let index = path.join(INDEX);
        let mut files = BTreeSet::new();
        if index.is_file() {
            for file in json::<Index>(&index)?.weight_map.into_values() {
                // The index is the operator's, but a name is a name and not a way out of the directory.
                if Path::new(&file).file_name().is_none_or(|name| name != file.as_str()) {
                    let why = format!("`{file}` is not a file name");
                    return Err(LoadError::Format { path: index, kind: "weight index", why });
                }
                files.insert(file);
            }
        } else {
            files.insert(WEIGHTS.to_owned());
        }
        let mut directory =
            Self { path: path.to_owned(), shards: vec![], shard_of: HashMap::new(), tied: false };
        for file in files {
            directory.add(&path.join(file))?;
        }
        Ok(directory)
    }

    fn add(&mut self, path: &Path) -> Result<(), LoadError> {
        let shard =
            Mapped::open(path).map_err(|source| LoadError::Io { path: path.to_owned(), source })?;
        let why = |why: safetensors::SafeTensorError| {
            let why = why.to_string();
            LoadError::Format { path: path.to_owned(), kind: "safetensors file", why }
        };
        let tensors = SafeTensors::deserialize(&shard).map_err(why)?;
        let names = tensors.names().into_iter().map(|name| (name.to_owned(), self.shards.len()));
        self.shard_of.extend(names);
        self.shards.push(shard);
        Ok(())
    }
}

impl Source for Directory {
    fn name(&self, tensor: Tensor) -> String {
        match tensor {
            Tensor::Weight(site) => format!("{site}.weight"),
            Tensor::Bias(site) => format!("{site}.bias"),
            Tensor::Gain(norm) => format!("{norm}.weight"),
        }
    }

    fn tensor(&self, tensor: Tensor) -> Result<Option<Stored<'_>>, LoadError> {
        // A tied head may be written out all the same; it is the embedding's then.
        if self.tied && matches!(tensor, Tensor::Weight(Site::Head)) {
            return Ok(None);
        }
        let name = self.name(tensor);
        let Some(shard) = self.shard_of.get(&name) else { return Ok(None) };
        let refuse = |why| LoadError::Tensor { path: self.path.clone(), tensor: name.clone(), why };
        let tensors = SafeTensors::deserialize(&self.shards[*shard])
            .map_err(|why| refuse(why.to_string()))?;
        let view = tensors.tensor(&name).map_err(|why| refuse(why.to_string()))?;
        let encoding = match view.dtype() {
            Dtype::F32 => Encoding::F32,
            Dtype::F16 => Encoding::F16,
            Dtype::BF16 => Encoding::BF16,
            other => return Err(refuse(format!("its type {other:?} is not f32, f16 or bf16"))),
        };
        Ok(Some(Stored { encoding, shape: view.shape().to_vec(), bytes: view.data() }))
    }

    fn row(&self, _: Site, row: usize) -> usize {
        row
    }

    fn names(&self) -> Vec<&str> {
        self.shard_of.keys().map(String::as_str).collect()
    }

    /// Rotary frequencies follow from the config; a tied head is the embedding.
    fn is_spare(&self, name: &str) -> bool {
        name.ends_with(".rotary_emb.inv_freq") || (self.tied && name == "lm_head.weight")
    }

    fn may_tie(&self) -> bool {
        self.tied
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::Horizon;

    fn read(config: &Value) -> Result<Spec, String> {
        let config = serde_json::from_value(config.clone()).map_err(|why| why.to_string())?;
        let spec = spec(&config).map_err(|why| match why {
            Refused::Architecture(other) => other,
            Refused::Because(why) => why,
        })?;
        spec.check().map(|()| spec)
    }

    /// Cases of `tests/reference/make_rope.py`: configs, and what transformers makes of them.
    fn cases() -> serde_json::Map<String, Value> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rope.json");
        let file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        file["cases"].as_object().unwrap().clone()
    }

    #[test]
    fn rotary_embeddings_are_those_of_transformers() {
        for (name, case) in cases() {
            let spec = read(&case["config"]).unwrap_or_else(|why| panic!("{name}: {why}"));
            let want: Vec<f32> = serde_json::from_value(case["frequencies"].clone()).unwrap();
            let got = spec.rope.frequencies(spec.heads.dim);
            assert_eq!(got.len(), want.len(), "{name}");
            for (pair, (got, want)) in got.iter().zip(&want).enumerate() {
                // torch's power has another last bit.
                assert!(
                    (got / want - 1.0).abs() < 3e-7,
                    "{name}, pair {pair}: {got} is not {want}"
                );
            }
            let want = case["attention"].as_f64().unwrap();
            let got = f64::from(spec.rope.attention());
            assert!((got - want).abs() < 1e-7, "{name}: attention {got} is not {want}");
        }
    }

    #[test]
    fn a_context_is_what_was_trained_and_no_more_than_frequencies_are_known_for() {
        let horizon = |kind| move |positions| Some(Horizon { kind, positions });
        let (dynamic, long) = (horizon("dynamic"), horizon("longrope"));
        let cases = cases();
        for (name, context, horizon) in [
            ("none", 4096, None),
            ("llama3", 131_072, None),
            ("yarn", 131_072, None),
            ("yarn-all", 8192, None),
            ("yarn-without-original", 4096, None),
            ("yarn-mscale", 163_840, None),
            ("dynamic", 4096, dynamic(4096)),
            ("longrope", 4096, long(4096)),
            ("longrope-factor", 4096, long(4096)),
        ] {
            let spec = read(&cases[name]["config"]).unwrap();
            assert_eq!((spec.context, spec.rope.horizon), (context, horizon), "{name}");
        }
        let mut config = cases["dynamic"]["config"].clone();
        config["rope_scaling"]["original_max_position_embeddings"] = json!(2048.0);
        let spec = read(&config).unwrap();
        assert_eq!((spec.context, spec.rope.horizon), (2048, dynamic(2048)));
        let said = spec.rope.horizon.unwrap().to_string();
        assert!(said.contains("beyond 2048 tokens") && said.contains("`dynamic`"), "{said}");
    }

    #[test]
    fn a_scaling_that_is_not_understood_is_refused() {
        let cases = cases();
        let refused = |name: &str, key: &str, value: Value| {
            let mut config = cases[name]["config"].clone();
            config["rope_scaling"][key] = value;
            read(&config).unwrap_err()
        };
        for (name, key, value, said) in [
            ("yarn", "factor", Value::Null, "has no factor"),
            ("yarn", "factor", json!("4"), "`factor` of its rope scaling is no number"),
            ("yarn", "factor", json!(0.5), "makes no sense"),
            ("yarn", "beta_slow", json!(64), "makes no sense"),
            ("yarn", "truncate", json!(1), "neither true nor false"),
            ("yarn", "original_max_position_embeddings", json!(-1), "is no count"),
            ("yarn", "original_max_position_embeddings", json!(1e300), "is no count"),
            (
                "yarn",
                "attn_factor",
                json!(1.0),
                "`attn_factor` of its rope scaling `yarn` is not known",
            ),
            (
                "dynamic",
                "alpha",
                json!(1000.0),
                "`alpha` of its rope scaling `dynamic` is not known",
            ),
            ("dynamic", "factor", Value::Null, "has no factor"),
            ("longrope", "short_factor", json!([1.0]), "makes no sense"),
            ("longrope", "short_factor", json!(["a"]), "no list of numbers short_factor"),
            ("longrope", "long_factor", Value::Null, "no list of numbers long_factor"),
            ("longrope", "factor", json!(3.0), "give it an attention_factor"),
            ("longrope-factor", "factor", Value::Null, "has no factor"),
            ("linear", "partial_rotary_factor", json!(0.5), "only a part of each head"),
            ("linear", "rope_type", json!("mrope"), "rope scaling `mrope` is not supported"),
        ] {
            let why = refused(name, key, value.clone());
            assert!(why.contains(said), "{name} with {key} {value}: {why}");
        }
        // What transformers 5 writes.
        let mut config = cases["yarn"]["config"].clone();
        let mut scaling = config.as_object_mut().unwrap().remove("rope_scaling").unwrap();
        scaling["rope_theta"] = config.as_object_mut().unwrap().remove("rope_theta").unwrap();
        config["rope_parameters"] = scaling;
        assert_eq!(read(&config).unwrap().rope, read(&cases["yarn"]["config"]).unwrap().rope);
    }
}
