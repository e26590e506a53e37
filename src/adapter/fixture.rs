//! A tiny base and adapters for it, written as PEFT writes them.

use std::{fs, num::NonZeroUsize, path::Path};

use safetensors::{Dtype, tensor::TensorView};

use super::{Folder, Rules, ScanError};
use crate::lora::{
    Limits, Sites, ZeroBase,
    peft::{CONFIG_FILE, WEIGHTS_FILE},
};

const LAYERS: usize = 2;
const HIDDEN: usize = 16;

/// Nothing that is tested here looks at its weights.
pub(super) fn base() -> ZeroBase {
    ZeroBase(Sites {
        layers: LAYERS,
        hidden: HIDDEN,
        attention: HIDDEN,
        kv: HIDDEN / 2,
        ffn: 2 * HIDDEN,
        vocab: 32,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
    })
}

/// Scans for the tiny base; `base` is reserved.
pub(super) fn scan(root: &Path) -> Result<Folder, ScanError> {
    let rules = Rules {
        base: &base(),
        limits: &Limits { max_rank: 512, max_bytes: 1 << 20 },
        reserved: &["base"],
        workers: NonZeroUsize::new(2).unwrap(),
    };
    Folder::scan(root, &rules)
}

/// The two files of an adapter on `q_proj`. Different values give different digests.
pub(super) fn adapter(rank: usize, value: f32) -> (String, Vec<u8>) {
    let config = format!(
        r#"{{"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": {rank}, "lora_alpha": {rank},
             "target_modules": ["q_proj"], "bias": "none", "inference_mode": true}}"#
    );
    let floats = value.to_le_bytes().repeat(rank * HIDDEN);
    let view = |shape| TensorView::new(Dtype::F32, shape, &floats).unwrap();
    let tensors = (0..LAYERS).flat_map(|layer| {
        let name = format!("base_model.model.model.layers.{layer}.self_attn.q_proj");
        [
            (format!("{name}.lora_A.weight"), view(vec![rank, HIDDEN])),
            (format!("{name}.lora_B.weight"), view(vec![HIDDEN, rank])),
        ]
    });
    (config, safetensors::serialize(tensors, None).unwrap())
}

/// Writes an adapter's folder.
pub(super) fn write(folder: &Path, rank: usize, value: f32) {
    let (config, weights) = adapter(rank, value);
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join(CONFIG_FILE), config).unwrap();
    fs::write(folder.join(WEIGHTS_FILE), weights).unwrap();
}
