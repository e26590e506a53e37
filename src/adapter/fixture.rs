//! A tiny base and adapters for it, written as PEFT writes them.

use std::{fs, num::NonZeroUsize, path::Path, sync::Arc, time::Duration};

use safetensors::{Dtype, tensor::TensorView};

use super::{Adapters, Folder, Foundation, Rules, ScanError, Settings};
use crate::{
    lora::{
        Limits, Matrices, Sites, ZeroBase,
        peft::{CONFIG_FILE, WEIGHTS_FILE},
    },
    store::Store,
    tenant::Tenants,
};

const LAYERS: usize = 2;
const HIDDEN: usize = 16;
const LIMITS: Limits = Limits { max_rank: 512, max_bytes: 1 << 20 };
/// The tiny base's sha256.
const BASE: &str = "ba5e";

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
        limits: &LIMITS,
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

/// Serves the folder and the store for the tiny base.
pub(super) async fn open(folder: Folder, store: Store, budget: usize) -> Adapters {
    open_as(Matrices::Native, folder, store, budget).await
}

/// The same on a server that keeps matrices so.
pub(super) async fn open_as(
    matrices: Matrices,
    folder: Folder,
    store: Store,
    budget: usize,
) -> Adapters {
    serve((BASE, matrices), folder, store, budget).await
}

/// The same for a base of this sha256.
pub(super) async fn open_on(sha256: &str, folder: Folder, store: Store, budget: usize) -> Adapters {
    serve((sha256, Matrices::Native), folder, store, budget).await
}

async fn serve(
    (sha256, matrices): (&str, Matrices),
    folder: Folder,
    store: Store,
    budget: usize,
) -> Adapters {
    let settings = Settings {
        budget,
        max_waiting: 16,
        time_out: Duration::from_mins(1),
        loaders: NonZeroUsize::MIN,
        limits: LIMITS,
        matrices,
        spool: std::env::temp_dir(),
        refresh: Duration::from_hours(1),
    };
    let foundation = Foundation { base: Arc::new(base()), sha256: sha256.to_owned() };
    // In a store of its own: the one that is tested is made to fail.
    let tenants = Tenants::open(&Store::faulty().0, None, Duration::from_hours(1)).await.unwrap();
    Adapters::open(folder, foundation, (store, tenants), settings).await.unwrap()
}
