//! Whole adapters: the project's own, PEFT's of every kind, real configurations, and hostile ones.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use proptest::prelude::*;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::{config::Config, pattern::Compiler, plan::Plan, read};
use crate::lora::{
    limits::Limits,
    manifest::Manifest,
    refusal::Refusal,
    site::{Norm, Proj, Site, Sites},
};

/// `SmolLM2-135M`.
const SMOLLM2: Sites = Sites {
    layers: 30,
    hidden: 576,
    attention: 576,
    kv: 192,
    ffn: 1536,
    vocab: 49_152,
    qkv_bias: false,
    o_bias: false,
    mlp_bias: false,
};

/// Every length is another, so that none can stand in for another.
const TINY: Sites = Sites {
    layers: 2,
    hidden: 8,
    attention: 12,
    kv: 6,
    ffn: 10,
    vocab: 16,
    qkv_bias: true,
    o_bias: false,
    mlp_bias: false,
};

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn file(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&file(path)).unwrap()
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<_> = fs::read_dir(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    folders
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

/// The two files of an adapter, to be changed one thing at a time.
#[derive(Clone)]
struct Files {
    config: Value,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Files {
    /// Rank 2 on `q_proj` and `v_proj` of both layers of [`TINY`].
    fn plain() -> Self {
        let config = json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4,
            "target_modules": ["q_proj", "v_proj"],
        });
        let mut files = Self { config, tensors: BTreeMap::new() };
        for layer in 0..2 {
            for (proj, outputs) in [("q_proj", 12), ("v_proj", 6)] {
                files = files.with_delta(
                    &format!("model.layers.{layer}.self_attn.{proj}"),
                    (8, outputs),
                    2,
                );
            }
        }
        files
    }

    fn with_delta(self, module: &str, (inputs, outputs): (usize, usize), rank: usize) -> Self {
        self.with(&format!("{module}.lora_A.weight"), &[rank, inputs])
            .with(&format!("{module}.lora_B.weight"), &[outputs, rank])
    }

    /// With a tensor below `base_model.model.`.
    fn with(mut self, name: &str, shape: &[usize]) -> Self {
        let values = (0..shape.iter().product()).map(|index: usize| index as f32 * 0.25 - 1.0);
        let tensor = (shape.to_vec(), values.collect());
        self.tensors.insert(format!("base_model.model.{name}"), tensor);
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.tensors.remove(&format!("base_model.model.{name}")).unwrap();
        self
    }

    fn configured(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    /// Without any tensor whose name contains `part`.
    fn stripped(mut self, part: &str) -> Self {
        self.tensors.retain(|name, _| !name.contains(part));
        self
    }

    fn weights(&self) -> Vec<u8> {
        let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = self
            .tensors
            .iter()
            .map(|(name, (shape, values))| {
                (name, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
            })
            .collect();
        let views = bytes.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(safetensors::Dtype::F32, (*shape).clone(), bytes).unwrap();
            (name.as_str(), view)
        });
        safetensors::serialize(views, None).unwrap()
    }

    fn refusal(&self) -> Refusal {
        let config = self.config.to_string();
        read(config.as_bytes(), &self.weights(), &TINY, &Limits::default()).unwrap_err()
    }

    fn accepted(&self, check: impl FnOnce(&Manifest<'_>)) {
        let config = self.config.to_string();
        check(&read(config.as_bytes(), &self.weights(), &TINY, &Limits::default()).unwrap());
    }

    /// Is refused as `code`, in words that contain `words`.
    #[track_caller]
    fn check_refused(&self, code: &str, words: &str) {
        let refusal = self.refusal();
        assert_eq!(refusal.code(), code, "{refusal}");
        assert!(refusal.to_string().contains(words), "{words} is not in: {refusal}");
    }
}

// what is accepted

#[test]
fn a_delta_is_its_two_tensors_and_their_scale() {
    let q = Site::Layer(1, Proj::Q);
    Files::plain().accepted(|manifest| {
        assert_eq!(manifest.deltas.len(), 4);
        let delta = &manifest.deltas[&q];
        assert_eq!((delta.a.shape(), delta.b.shape()), (&[2, 8][..], &[12, 2][..]));
        assert_eq!(delta.a.values().take(2).collect::<Vec<_>>(), [-1.0, -0.75]);
        assert_eq!((delta.rank, delta.scale.to_string()), (2, "2".to_owned()));
        assert_eq!(
            (manifest.rank, &manifest.targets[..]),
            (2, &["q_proj", "v_proj"].map(String::from)[..])
        );
    });
    Files::plain().configured("use_rslora", json!(true)).accepted(|manifest| {
        assert_eq!((manifest.deltas[&q].rank, manifest.deltas[&q].scale), (2, 2.828_427));
    });
}

#[test]
fn the_first_pattern_that_matches_counts_in_the_order_of_the_file() {
    let files = Files::plain().configured(
        "alpha_pattern",
        json!({"q_proj": 16, "layers.0.self_attn.q_proj": 2, "v": 1, "_proj": 1}),
    );
    files.accepted(|manifest| {
        let scales: Vec<f32> = manifest.deltas.values().map(|delta| delta.scale).collect();
        assert_eq!(scales, [8.0, 2.0, 8.0, 2.0]);
    });
}

#[test]
fn every_base_bias_is_needed_for_all_and_none_for_lora_only() {
    let all = Files::plain().configured("bias", json!("all"));
    all.check_refused("missing_tensor", "self_attn.q_proj.bias");
    let mut all = all;
    for layer in 0..2 {
        let module = |proj: &str| format!("model.layers.{layer}.self_attn.{proj}");
        all = all
            .with(&format!("{}.base_layer.bias", module("q_proj")), &[12])
            .with(&format!("{}.bias", module("k_proj")), &[6])
            .with(&format!("{}.base_layer.bias", module("v_proj")), &[6]);
    }
    all.accepted(|manifest| assert_eq!(manifest.biases.len(), 6));
    all.clone().configured("bias", json!("none")).check_refused("superfluous_tensor", "bias");

    let only = Files::plain().configured("bias", json!("lora_only"));
    only.accepted(|manifest| assert!(manifest.biases.is_empty()));
    all.stripped("k_proj")
        .configured("bias", json!("lora_only"))
        .accepted(|manifest| assert_eq!(manifest.biases.len(), 4));
    only.with("model.layers.0.self_attn.q_proj.bias", &[12])
        .check_refused("missing_tensor", "layers.0.self_attn.v_proj.bias");
}

#[test]
fn the_embedding_and_the_head_are_two_sites() {
    let files = Files::plain()
        .configured("target_modules", json!(["q_proj", "v_proj", "embed_tokens", "lm_head"]))
        .with("model.embed_tokens.lora_embedding_A", &[2, 16])
        .with("model.embed_tokens.lora_embedding_B", &[8, 2])
        .with("model.embed_tokens.base_layer.weight", &[16, 8])
        .with_delta("lm_head", (8, 16), 2);
    files.accepted(|manifest| {
        assert_eq!(manifest.deltas[&Site::Embed].a.shape(), [2, 16]);
        assert_eq!(manifest.deltas[&Site::Head].b.shape(), [16, 2]);
        assert_eq!(manifest.copies.len(), 1);
        assert_eq!(manifest.targets, ["embed_tokens", "lm_head", "q_proj", "v_proj"]);
    });
    files
        .clone()
        .configured("lora_bias", json!(true))
        .check_refused("config_conflict", "lora_bias and embed_tokens");
    files
        .without("model.embed_tokens.lora_embedding_A")
        .with("model.embed_tokens.lora_A.weight", &[2, 16])
        .check_refused("unknown_tensor", "model.embed_tokens.lora_A.weight");
}

#[test]
fn modules_to_save_decides_what_a_whole_weight_is() {
    let file = Files::plain().with("lm_head.weight", &[16, 8]);
    file.accepted(|manifest| {
        assert_eq!((manifest.copies.len(), manifest.replaced.len()), (1, 0));
    });
    file.configured("modules_to_save", json!(["lm_head"])).accepted(|manifest| {
        assert_eq!((manifest.copies.len(), manifest.replaced.len()), (0, 1));
    });
}

#[test]
fn modules_to_save_matches_in_the_middle_of_a_word() {
    let mut files = Files::plain().configured("modules_to_save", json!(["norm"]));
    for norm in ["norm", "layers.0.input_layernorm", "layers.1.input_layernorm"] {
        files = files.with(&format!("model.{norm}.weight"), &[8]);
    }
    files.check_refused("missing_tensor", "layers.0.post_attention_layernorm.weight");
    for layer in 0..2 {
        let name = format!("model.layers.{layer}.post_attention_layernorm.weight");
        files = files.with(&name, &[8]);
    }
    files.accepted(|manifest| {
        assert_eq!(manifest.norms.len(), 5);
        assert!(manifest.norms.contains_key(&Norm::Final));
    });
}

#[test]
fn tied_weights_are_both_there_and_equal() {
    let tied = Files::plain()
        .configured("modules_to_save", json!(["embed_tokens"]))
        .configured("ensure_weight_tying", json!(true))
        .with("model.embed_tokens.weight", &[16, 8]);
    tied.check_refused("missing_tensor", "lm_head.weight");
    let mut tied = tied.with("lm_head.weight", &[16, 8]);
    tied.accepted(|manifest| assert_eq!(manifest.replaced.len(), 2));
    tied.tensors.get_mut("base_model.model.lm_head.weight").unwrap().1[5] = 7.0;
    tied.check_refused("tied_weights_differ", "lm_head");
}

#[test]
fn lora_stays_off_the_modules_that_are_saved_whole() {
    Files::plain()
        .configured("target_modules", json!(["q_proj", "v_proj", "lm_head"]))
        .configured("modules_to_save", json!(["lm_head"]))
        .with("lm_head.weight", &[16, 8])
        .accepted(|manifest| assert!(!manifest.deltas.contains_key(&Site::Head)));
    Files::plain()
        .configured("target_modules", json!(["q_proj", "v_proj", "lm_head"]))
        .configured("modules_to_save", json!(["head"]))
        .with("lm_head.weight", &[16, 8])
        .with_delta("lm_head", (8, 16), 2)
        .check_refused("config_conflict", "same module");
}

#[test]
fn layers_restrict_names_but_not_whole_paths() {
    let first = Files::plain().stripped("layers.1.").configured("layers_to_transform", json!(0));
    first.accepted(|manifest| assert_eq!(manifest.deltas.len(), 2));
    first
        .clone()
        .configured("layers_pattern", json!(["h", "layers"]))
        .accepted(|manifest| assert_eq!(manifest.deltas.len(), 2));
    first.clone().configured("layers_pattern", json!("h")).check_refused("no_target", "q_proj");
    first
        .with_delta("model.layers.1.self_attn.q_proj", (8, 12), 2)
        .configured(
            "target_modules",
            json!(["q_proj", "v_proj", "model.layers.1.self_attn.q_proj"]),
        )
        .accepted(|manifest| assert_eq!(manifest.deltas.len(), 3));
    Files::plain()
        .configured("target_modules", json!(".*[qv]_proj"))
        .configured("layers_to_transform", json!([0]))
        .check_refused("config_conflict", "layers_to_transform");
    Files::plain()
        .configured("layers_pattern", json!("layers"))
        .check_refused("config_conflict", "layers_pattern");
}

#[test]
fn exclusion_wins() {
    let files = Files::plain().stripped("layers.1.self_attn.v");
    for excluded in [json!(["layers.1.self_attn.v_proj"]), json!(r".*1\..*v_proj")] {
        files
            .clone()
            .configured("exclude_modules", excluded)
            .accepted(|manifest| assert_eq!(manifest.deltas.len(), 3));
    }
}

#[test]
fn the_magnitude_has_two_spellings_and_one_place() {
    let mut dora = Files::plain().configured("use_dora", json!(true));
    dora.check_refused("missing_tensor", "lora_magnitude_vector");
    for layer in 0..2 {
        let module = format!("model.layers.{layer}.self_attn");
        dora = dora
            .with(&format!("{module}.q_proj.lora_magnitude_vector"), &[12])
            .with(&format!("{module}.v_proj.lora_magnitude_vector.weight"), &[6]);
    }
    dora.accepted(|manifest| {
        assert!(manifest.deltas.values().all(|delta| delta.magnitude.is_some()));
    });
    dora.clone()
        .with("model.layers.0.self_attn.q_proj.lora_magnitude_vector.weight", &[12])
        .check_refused("repeated_tensor", "lora_magnitude_vector");
    dora.configured("use_dora", json!(false)).check_refused("superfluous_tensor", "use_dora");
}

// what is refused

#[test]
fn settings_that_change_the_maths_are_refused_and_others_are_not() {
    for (key, value, code) in [
        ("layer_replication", json!([[0, 1]]), "unsupported_feature"),
        ("alora_invocation_tokens", json!([]), "unsupported_feature"),
        ("arrow_config", json!({"top_k": 3}), "unsupported_feature"),
        ("megatron_config", json!({"x": 1}), "unsupported_feature"),
        ("use_bdlora", json!({"nblocks": 4}), "unsupported_feature"),
        ("init_lora_weights", json!("pissa_niter_16"), "unsupported_initialisation"),
        ("init_lora_weights", json!("olora"), "unsupported_initialisation"),
        ("init_lora_weights", json!("loftq"), "unsupported_initialisation"),
        ("invented_in_2031", json!(1), "unknown_key"),
        ("chorus", json!({"a": 1}), "chorus_object"),
        ("choir", json!({"a": 1}), "unknown_key"),
        ("task_type", json!("SEQ_CLS"), "unsupported_task_type"),
        ("use_dora", json!("yes"), "config_value"),
        ("bias", json!("some"), "config_value"),
        ("target_modules", json!(["q_proj", 7]), "config_value"),
        ("target_modules", json!(null), "config_missing_key"),
        ("target_modules", json!(["norm"]), "target_is_a_norm"),
        ("modules_to_save", json!(["k_proj"]), "saved_projection"),
        ("modules_to_save", json!(["classifier"]), "saved_module_unknown"),
        ("layers_to_transform", json!([-1]), "config_value"),
        ("layers_pattern", json!("l.*"), "unusable_pattern"),
        ("r", json!(2.0), "config_value"),
        ("r", json!(513), "rank_too_high"),
        ("rank_pattern", json!({"q_proj": 0}), "config_value"),
        ("rank_pattern", json!({"q_proj": 1_u64 << 40}), "rank_too_high"),
        ("alpha_pattern", json!({"q_proj": "8"}), "config_value"),
        ("alpha_pattern", json!([]), "config_value"),
        ("lora_alpha", json!(1e-300), "scale_out_of_range"),
        ("lora_alpha", json!(1e30), "scale_out_of_range"),
    ] {
        let files = Files::plain().configured(key, value);
        assert_eq!(files.refusal().code(), code, "{key}: {}", files.refusal());
    }
    for (key, value) in [
        ("fan_in_fan_out", json!(true)),
        ("init_lora_weights", json!("gaussian")),
        ("init_lora_weights", json!(false)),
        ("lora_dropout", json!(0.5)),
        ("auto_mapping", json!({"unsloth_fixed": true})),
        ("task_type", json!(null)),
        ("invented_in_2031", json!(false)),
        ("target_parameters", json!([])),
        ("target_modules", json!(["q_proj", "v_proj", "c_attn"])),
        ("rank_pattern", json!({"c_attn": 8})),
        ("target_modules", json!("(a+)+$|.*(q|v)_proj")),
        ("layers_to_transform", json!([])),
    ] {
        Files::plain().configured(key, value).accepted(|manifest| {
            assert_eq!(manifest.deltas.len(), 4, "{key}");
        });
    }
}

#[test]
fn tensors_must_fit_the_base_and_the_configuration() {
    let a = "model.layers.0.self_attn.q_proj.lora_A.weight";
    let b = "model.layers.0.self_attn.q_proj.lora_B.weight";
    let plain = Files::plain;
    plain().with(a, &[3, 8]).check_refused("rank_mismatch", "rank 3");
    plain().with(b, &[12, 3]).check_refused("rank_mismatch", "rank 3");
    plain().with(a, &[2, 9]).check_refused("shape_mismatch", "[2, 9] where [2, 8]");
    plain().with(a, &[2, 8, 1]).check_refused("shape_mismatch", "[2, 8, 1]");
    plain().with(a, &[16]).check_refused("shape_mismatch", "[16]");
    plain().without(b).check_refused("missing_tensor", "q_proj.lora_B.weight");
    plain().with("model.norm.weight", &[8]).check_refused("superfluous_tensor", "model.norm");
    plain()
        .with_delta("model.layers.2.self_attn.q_proj", (8, 12), 2)
        .check_refused("unknown_module", "model.layers.2.self_attn.q_proj");
    plain()
        .with("model.layers.0.self_attn.q_proj.lora_A.default.weight", &[2, 8])
        .check_refused("unknown_module", "lora_A.default");
    plain()
        .with("model.layers.0.self_attn.q_proj.base_layer.weight", &[12, 8])
        .check_refused("superfluous_tensor", "base_layer");
    plain()
        .with("model.layers.0.self_attn.q_proj.lora_B.bias", &[12])
        .check_refused("superfluous_tensor", "lora_bias");
}

#[test]
fn values_that_are_no_weights_are_named() {
    let name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight";
    for (value, code) in [
        (f32::NAN, "non_finite_weight"),
        (f32::NEG_INFINITY, "non_finite_weight"),
        (-1e38, "extreme_weight"),
        (65_505.0, "extreme_weight"),
    ] {
        let mut files = Files::plain();
        files.tensors.get_mut(name).unwrap().1[7] = value;
        files.check_refused(code, "v_proj.lora_B.weight");
        assert!(files.refusal().to_string().contains("element 7"), "{}", files.refusal());
    }
}

#[test]
fn other_kinds_of_file_are_recognised() {
    let config = Files::plain().config.to_string();
    let read = |weights: &[u8]| {
        read(config.as_bytes(), weights, &TINY, &Limits::default()).unwrap_err().to_string()
    };
    assert!(read(b"").contains("empty"));
    assert!(read(b"PK\x03\x04 archive/data.pkl").contains("pickle"));
    assert!(read(b"\x80\x04\x95\x10\0\0\0\0\0\0\0}").contains("pickle"));
    assert!(read(b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0").contains("GGUF"));
    assert!(read(b"\n<!DOCTYPE html><html>").contains("HTML"));
    assert!(read(b"abc").contains("truncated"));
}

#[test]
fn limits_are_the_servers() {
    let files = Files::plain();
    let (config, weights) = (files.config.to_string(), files.weights());
    let read = |limits: Limits| read(config.as_bytes(), &weights, &TINY, &limits).map(|_| ());
    let bytes = weights.len() as u64;
    assert_eq!(read(Limits { max_rank: 2, max_bytes: bytes }), Ok(()));
    let refusal = read(Limits { max_rank: 1, max_bytes: bytes }).unwrap_err();
    assert_eq!(refusal.code(), "rank_too_high");
    let refusal = read(Limits { max_rank: 2, max_bytes: bytes - 1 }).unwrap_err();
    assert_eq!(refusal, Refusal::WeightsTooLarge { bytes, max: bytes - 1 });
}

// what others have made

#[test]
fn the_projects_adapters_are_read() {
    let expected = [
        ("formal", 12 * 4, 64),
        ("german", 30 * 5, 16),
        ("hashtag", 30 * 2, 8),
        ("medcode", 30 * 4, 8),
        ("pirate", 30 * 2, 8),
        ("sentiment", 30 * 2, 4),
        ("sql", 30 * 4, 32),
        ("support-json", 30 * 7, 16),
    ];
    let folders = folders(&project("adapters"));
    assert_eq!(folders.iter().map(|path| name(path)).collect::<Vec<_>>(), expected.map(|e| e.0));
    for (folder, (name, sites, rank)) in folders.iter().zip(expected) {
        let weights = file(&folder.join(super::WEIGHTS_FILE));
        let config = file(&folder.join(super::CONFIG_FILE));
        let manifest = read(&config, &weights, &SMOLLM2, &Limits::default()).unwrap();
        assert_eq!((manifest.deltas.len(), manifest.rank), (sites, rank), "{name}");
        assert_eq!(manifest.norms.len(), if name == "hashtag" { 61 } else { 0 }, "{name}");
        let dora = manifest.deltas.values().filter(|delta| delta.magnitude.is_some()).count();
        assert_eq!(dora, if name == "medcode" { sites } else { 0 }, "{name}");
        for (site, delta) in &manifest.deltas {
            let strength = (delta.rank, delta.scale);
            let expected = match (name, site) {
                ("formal", Site::Layer(18..=29, _)) => (64, 2.0),
                ("german", Site::Layer(0..=3, Proj::Q | Proj::V | Proj::O)) => (4, 2.0),
                ("german", Site::Layer(_, Proj::Down)) => (8, 3.0),
                ("sql", _) => (32, 1.0),
                ("formal", _) => panic!("formal is on layers 18 to 29 alone"),
                _ => (rank, 2.0),
            };
            assert_eq!(strength, expected, "{name}: {site}");
        }
    }
}

/// A model folder's sites, as its config.json has them.
fn sites_of(model: &Path) -> Sites {
    let config = json_file(&model.join("config.json"));
    let number = |key: &str| config[key].as_u64().and_then(|n| usize::try_from(n).ok());
    let flag = |key: &str| config[key].as_bool().unwrap_or_default();
    let heads = number("num_attention_heads").unwrap();
    let hidden = number("hidden_size").unwrap();
    let width = number("head_dim").unwrap_or(hidden / heads);
    Sites {
        layers: number("num_hidden_layers").unwrap(),
        hidden,
        attention: heads * width,
        kv: number("num_key_value_heads").unwrap() * width,
        ffn: number("intermediate_size").unwrap(),
        vocab: number("vocab_size").unwrap(),
        qkv_bias: flag("attention_bias") || config["model_type"] == "qwen2",
        o_bias: flag("attention_bias"),
        mlp_bias: flag("mlp_bias"),
    }
}

/// What of an adapter's kind is not served.
const REFUSED: [(&str, &str); 2] =
    [("trainable-tokens", "unsupported_feature"), ("save-linear", "saved_projection")];

#[test]
fn every_kind_of_adapter_that_peft_writes_is_read() {
    let mut count = 0;
    for model in folders(&project("tests/fixtures/models")) {
        let sites = sites_of(&model);
        for folder in folders(&model.join("adapters")) {
            count += 1;
            let weights = file(&folder.join(super::WEIGHTS_FILE));
            let config = file(&folder.join(super::CONFIG_FILE));
            let outcome = read(&config, &weights, &sites, &Limits::default());
            let refused = REFUSED.into_iter().find(|(case, _)| *case == name(&folder));
            match (outcome, refused) {
                (Ok(manifest), None) => check_complete(&manifest, &weights, name(&folder)),
                (Err(refusal), Some((_, code))) => assert_eq!(refusal.code(), code, "{refusal}"),
                (outcome, _) => panic!("{}: {outcome:?}", folder.display()),
            }
        }
    }
    assert!(count >= 50, "{count} adapters");
}

/// Nothing of the file was left out, and nothing is there twice.
fn check_complete(manifest: &Manifest<'_>, weights: &[u8], case: &str) {
    let deltas = manifest.deltas.values().flat_map(|delta| {
        [Some(&delta.a), Some(&delta.b), delta.magnitude.as_ref(), delta.bias.as_ref()]
    });
    let whole = manifest.norms.values().chain(manifest.biases.values());
    let whole = whole.chain(manifest.replaced.values());
    let whole = whole.chain(manifest.copies.iter().map(|(_, view)| view));
    let read: usize = deltas.flatten().chain(whole).map(|view| view.bytes().len()).sum();
    let (header, _) = weights.split_first_chunk().unwrap();
    let header = usize::try_from(u64::from_le_bytes(*header)).unwrap();
    assert_eq!(read, weights.len() - 8 - header, "{case}");
    let expect = |wanted: &str, found: bool| {
        assert_eq!(case.contains(wanted), found, "{case}");
    };
    expect("dora", manifest.deltas.values().any(|delta| delta.magnitude.is_some()));
    expect("lora-bias", manifest.deltas.values().any(|delta| delta.bias.is_some()));
    expect("bias-all", !manifest.biases.is_empty());
    expect("save-norm", !manifest.norms.is_empty());
}

#[test]
fn modules_are_selected_as_by_peft() {
    let sites = Sites { layers: 12, ..SMOLLM2 };
    let cases = json_file(&project("tests/fixtures/peft_targets.json"));
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 160);
    for case in cases {
        let mut config = case["config"].clone();
        config["peft_type"] = json!("LORA");
        let plan = Config::read(config.to_string().as_bytes(), &Limits::default())
            .and_then(|config| Plan::new(&config, &sites));
        if case["refused"] == true {
            assert!(plan.is_err(), "{config}: {plan:?}");
            continue;
        }
        let plan = plan.unwrap_or_else(|refusal| panic!("{config}: {refusal}"));
        let deltas: BTreeMap<String, (usize, f32)> = plan
            .deltas
            .iter()
            .map(|(site, strength)| (site.to_string(), (strength.rank, strength.scale)))
            .collect();
        let expected: BTreeMap<String, (usize, f32)> =
            serde_json::from_value(case["deltas"].clone()).unwrap();
        assert_eq!(deltas, expected, "{config}");
        let saved = plan.replaced.iter().map(ToString::to_string);
        let mut saved: Vec<_> = saved.chain(plan.norms.iter().map(ToString::to_string)).collect();
        saved.sort();
        assert_eq!(json!(saved), case["saved"], "{config}");
    }
}

/// What becomes of the cases that leave it to us.
const DECIDED: [(&str, &str); 17] = [
    ("extreme-finite-weights", "extreme_weight"),
    ("extra-tensors", "superfluous_tensor"),
    ("missing-tensors", "missing_tensor"),
    ("unprefixed-names", "unprefixed_tensor"),
    ("config-no-peft-type", "config_missing_key"),
    ("config-5mb", "config_too_large"),
    ("alpha-negative", "config_value"),
    ("alpha-1e30", "scale_out_of_range"),
    ("alpha-zero", "config_value"),
    ("rank-pattern-bad-regex", "unusable_pattern"),
    ("target-regex-redos", "config_conflict"),
    ("unsupported-pissa", "unsupported_initialisation"),
    ("unsupported-lora-bias", "accepted"),
    ("unsupported-qalora", "unsupported_feature"),
    ("control-good-mini", "accepted"),
    ("control-good-f16", "accepted"),
    ("dtype-i64", "unsupported_dtype"),
];

#[test]
fn bad_adapters_are_judged_as_they_must_be() {
    let folder = project("tests/fixtures/bad");
    let cases = json_file(&folder.join("cases.json"));
    let cases = cases.as_array().unwrap();
    assert!(cases.len() >= 78, "{} cases", cases.len());
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let file = |file: &str| fs::read(folder.join(name).join(file)).ok();
        let mut files = (file(super::CONFIG_FILE), file(super::WEIGHTS_FILE));
        if let (Some(config), Some(length)) = (&mut files.0, case["config_padded_to"].as_u64()) {
            config.resize(usize::try_from(length).unwrap(), b' ');
        }
        let begun = Instant::now();
        let outcome = match &files {
            (Some(config), Some(weights)) => {
                read(config, weights, &SMOLLM2, &Limits::default()).map(|_| ())
            }
            // Told by whoever looks at the folder.
            (None, _) => Err(Refusal::MissingFile { file: super::CONFIG_FILE }),
            (_, None) if name == "pickle-bin" => Err(Refusal::Pickle { file: "adapter_model.bin" }),
            (Some(config), None) => match read(config, b"", &SMOLLM2, &Limits::default()) {
                Err(mlx @ Refusal::Mlx { .. }) => Err(mlx),
                _ => Err(Refusal::MissingFile { file: super::WEIGHTS_FILE }),
            },
        };
        let time = begun.elapsed();
        assert!(time < PATIENCE, "{name} took {time:?}");
        check_outcome(case, name, outcome.as_ref());
    }
}

fn check_outcome(case: &Value, name: &str, outcome: Result<&(), &Refusal>) {
    let message = outcome.map_or_else(ToString::to_string, |()| "accepted".to_owned());
    println!("{name}: {message}");
    match case["expect"].as_str().unwrap() {
        "ok" => assert!(outcome.is_ok(), "{name}: {message}"),
        "4xx" => assert!(outcome.is_err(), "{name}"),
        _ => assert!(DECIDED.iter().any(|(decided, _)| *decided == name), "{name} is undecided"),
    }
    if let Some((_, code)) = DECIDED.iter().find(|(decided, _)| *decided == name) {
        assert_eq!(outcome.map_or_else(Refusal::code, |()| "accepted"), *code, "{message}");
    }
    let words = case["message_should_mention"].as_str().unwrap().to_lowercase();
    let mentioned = |word: &str| message.to_lowercase().contains(word.trim());
    if outcome.is_err() {
        assert!(words.split('/').any(mentioned), "{name}: {words} is not in: {message}");
    }
    assert!(message.len() < 1000 && !message.contains('\n'), "{name}: {message}");
}

#[test]
fn real_configurations_are_understood() {
    let limits = Limits::default();
    let plan = |file: &[u8]| Plan::new(&Config::read(file, &limits)?, &SMOLLM2);
    let mut count = 0;
    for entry in fs::read_dir(project("tests/fixtures/configs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        count += 1;
        let config = json_file(&path);
        let names = config["target_modules"].as_array();
        let ours = names
            .is_some_and(|names| names.iter().any(|name| name == "o_proj" || name == "q_proj"));
        let expected = match (config["peft_type"].as_str(), config["task_type"].as_str()) {
            (None, _) => "mlx_adapter",
            (Some("LORA"), None | Some("CAUSAL_LM")) if ours => "understood",
            (Some("LORA"), None | Some("CAUSAL_LM")) => "no_target",
            (Some("LORA"), Some(_)) => "unsupported_task_type",
            (Some(_), _) => "unsupported_peft_type",
        };
        let outcome = plan(&file(&path));
        let code = outcome.as_ref().map_or_else(Refusal::code, |_| "understood");
        assert_eq!(code, expected, "{}: {outcome:?}", path.display());
    }
    assert_eq!(count, 36);
}

// what nobody has made yet

/// Names of configuration keys and values that stand near the ones that are understood.
fn any_config() -> impl Strategy<Value = Value> {
    let key = prop::sample::select(vec![
        "r",
        "lora_alpha",
        "target_modules",
        "exclude_modules",
        "modules_to_save",
        "bias",
        "use_dora",
        "use_rslora",
        "lora_bias",
        "rank_pattern",
        "alpha_pattern",
        "layers_to_transform",
        "layers_pattern",
        "init_lora_weights",
        "ensure_weight_tying",
        "task_type",
        "peft_type",
        "x",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3_i64..20).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec![
            "q_proj",
            "v_proj",
            ".*[qv]_proj",
            "norm",
            "lm_head",
            "embed_tokens",
            "all-linear",
            "all",
            "lora_only",
            "none",
            "layers",
            "(",
            "",
            "LORA",
            "model.layers.1.self_attn.q_proj",
        ])
        .prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(2, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((".{0,8}|[qv]_proj", inner), 0..4)
                .prop_map(|entries| entries.into_iter().collect()),
        ]
    });
    prop::collection::vec((key, value), 0..4).prop_map(|changes| {
        let mut config = Files::plain().config;
        for (key, value) in changes {
            config[key] = value;
        }
        config
    })
}

fn all_values(manifest: &Manifest<'_>) -> impl Iterator<Item = f32> {
    manifest.deltas.values().flat_map(|delta| delta.a.values().chain(delta.b.values()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn changed_bytes_are_refused_or_still_an_adapter(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
        header_only in any::<bool>(),
    ) {
        let files = Files::plain();
        let mut weights = files.weights();
        let length = if header_only { 1200 } else { weights.len() };
        for (index, byte) in changes {
            weights[index.index(length)] = byte;
        }
        if let Some(cut) = cut {
            weights.truncate(cut.index(length));
        }
        let config = files.config.to_string();
        match read(config.as_bytes(), &weights, &TINY, &Limits::default()) {
            Ok(manifest) => {
                prop_assert_eq!(manifest.deltas.len(), 4);
                prop_assert!(all_values(&manifest).all(f32::is_finite));
            }
            Err(refusal) => prop_assert!(refusal.to_string().len() < 2000),
        }
    }

    #[test]
    fn changed_configurations_are_refused_or_mean_what_the_tensors_are(config in any_config()) {
        let weights = Files::plain().weights();
        match read(config.to_string().as_bytes(), &weights, &TINY, &Limits::default()) {
            Ok(manifest) => {
                prop_assert_eq!(manifest.deltas.len(), 4);
                prop_assert!(manifest.deltas.values().all(|delta| delta.scale > 0.0 && delta.rank == 2));
            }
            Err(refusal) => prop_assert!(refusal.to_string().len() < 2000),
        }
    }

    #[test]
    fn changed_text_of_a_configuration_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let files = Files::plain();
        let mut config = files.config.to_string().into_bytes();
        for (index, byte) in changes {
            let index = index.index(config.len());
            config[index] = byte;
        }
        let _outcome = read(&config, &files.weights(), &TINY, &Limits::default()).map(|_| ());
    }
}

/// Tells work that ends from work that does not: the worst case takes a quarter of a second, one that is quadratic or worse takes hours.
const PATIENCE: Duration = Duration::from_mins(2);

/// A base with as many modules as any that is served.
const LARGE: Sites = Sites { layers: 126, ..SMOLLM2 };

#[track_caller]
fn check_quick(what: &str, config: &Value, weights: &[u8]) {
    let begun = Instant::now();
    let outcome =
        read(config.to_string().as_bytes(), weights, &LARGE, &Limits::default()).map(|_| ());
    let time = begun.elapsed();
    println!("{what}: {time:?}, {outcome:?}");
    assert!(time < PATIENCE, "{what} took {time:?}");
}

#[test]
fn hostile_configurations_cost_little() {
    let plain = Files::plain();
    let weights = plain.weights();
    let with = |key: &str, value: Value| plain.clone().configured(key, value).config;
    let patterns = |pattern: &dyn Fn(usize) -> String, count: usize| -> Value {
        (0..count).map(|index| (pattern(index), json!(2))).collect()
    };
    for family in [
        |n| format!("(.*a.*|.*l.*|.*_.*){{{n}}}z"),
        |n| format!("(.?){{{n}}}x"),
        |n| format!("(.*[a-z]){{{n}}}!"),
        |n| format!("((.{{100}}){{100}}){{{n}}}"),
        |n| format!("([a-y.]|[a-x_]|[a-w0-9]){{{n}}}!"),
        |n: usize| format!("(a+)+$|.*(q|v){{{n}}}_proj"),
    ] {
        let different = |n: usize, index: usize| format!("{}|{}", family(n), 100 + index);
        let is_small =
            |n: &usize| Compiler::new().suffix("rank_pattern", &different(*n, 0)).is_ok();
        let largest = (1..1000).rev().find(is_small).unwrap_or(1);
        let different = |index| different(largest, index);
        let ranks = with("rank_pattern", patterns(&different, 64));
        check_quick(&family(largest), &ranks, &weights);
    }
    check_quick(
        "names",
        &with("alpha_pattern", patterns(&|n| format!("{n}......................_proj"), 4096)),
        &weights,
    );
    let names: Vec<String> = (0..4096).map(|n| format!("{n}{}", ".a".repeat(100))).collect();
    check_quick("targets", &with("target_modules", json!(names)), &weights);
    check_quick("saved", &with("modules_to_save", json!(names)), &weights);
    check_quick("numbers", &with("layers_to_transform", json!(vec![1; 400_000])), &weights);
    check_quick("unknown", &with("x", json!(vec![json!([]); 300_000])), &weights);
}

#[test]
fn hostile_headers_cost_little() {
    let config = Files::plain().config;
    let file = |header: &str| [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    let entry = |n: usize| format!(r#""{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#);
    for count in [20_000, 60_000] {
        let entries = (0..count).map(entry).collect::<Vec<_>>().join(",");
        check_quick("tensors", &config, &file(&format!("{{{entries}}}")));
    }
    let axes = "1,".repeat(2_000_000);
    let header = format!(r#"{{"a":{{"dtype":"F32","shape":[{axes}1],"data_offsets":[0,0]}}}}"#);
    check_quick("axes", &config, &file(&header));
    let notes = (0..250_000).map(|n| format!(r#""{n}":"""#)).collect::<Vec<_>>().join(",");
    check_quick("metadata", &config, &file(&format!(r#"{{"__metadata__":{{{notes}}}}}"#)));
    check_quick("nested", &config, &file(&"[".repeat(4 << 20)));
    check_quick("newlines", &config, &file(&"\n".repeat(4 << 20)));
    check_quick("text", &config, &file(&format!("{{\"{}", "ä".repeat(2_000_000))));
}
