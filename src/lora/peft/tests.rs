//! Whole adapters: the project's own, PEFT's of every kind, real configurations, and hostile ones.

mod accepted;
mod changed;
mod hostile;
mod others;
mod refused;

use std::{collections::BTreeMap, time::Duration};

use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::read;
use crate::lora::{limits::Limits, manifest::Manifest, refusal::Refusal, site::Sites};

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

/// Tells work that ends from work that does not: the worst case takes a quarter of a second, one that is quadratic or worse takes hours.
const PATIENCE: Duration = Duration::from_mins(2);
