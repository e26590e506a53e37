//! What tests stand on: fixtures, and a model driven by hand.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use chorus::{
    kernels::simd::Tier,
    lora::{Adapter, Base, Digest, Limits, LoraBatch, Refusal, peft},
    model::{Kv, Llama, PAGE, SequenceRows, Step},
};

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

pub(crate) fn json(path: &Path) -> serde_json::Value {
    let bytes = std::fs::read(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

pub(crate) fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    let mut folders: Vec<_> =
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

pub(crate) fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

pub(crate) fn load(path: &Path) -> Llama {
    Llama::load(path, Tier::best(), 2).unwrap_or_else(|why| panic!("{why}"))
}

/// Reads and builds a PEFT folder, and checks that it is as large as it was said to be.
pub(crate) fn adapter(folder: &Path, base: &Llama) -> Result<Arc<Adapter>, Refusal> {
    let config = std::fs::read(folder.join("adapter_config.json")).unwrap();
    let weights = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let manifest = peft::read(&config, &weights, base.sites(), &Limits::default())?;
    let planned = Adapter::planned_bytes(&manifest, base.sites());
    let adapter = Adapter::build(Digest::of(&config, &weights), &manifest, base)?;
    assert_eq!(planned, adapter.bytes(), "{}", folder.display());
    Ok(Arc::new(adapter))
}

/// One sequence through the network, by hand.
pub(crate) struct Solo<'a> {
    llama: &'a Llama,
    kv: Kv,
    pages: Vec<u32>,
    adapter: Option<Arc<Adapter>>,
    computed: usize,
}

impl<'a> Solo<'a> {
    pub(crate) fn new(llama: &'a Llama, adapter: Option<Arc<Adapter>>, most: usize) -> Self {
        let pages = most.div_ceil(PAGE);
        let kv = Kv::new(llama.spec(), pages, &candle_core::Device::Cpu).unwrap();
        let pages = (0..u32::try_from(pages).unwrap()).rev().collect();
        Self { llama, kv, pages, adapter, computed: 0 }
    }

    /// Logits after each of `tokens`.
    pub(crate) fn feed(&mut self, tokens: &[u32]) -> Vec<Vec<f32>> {
        let rows = 0..tokens.len();
        let groups = self.adapter.iter().map(|adapter| (rows.clone(), Arc::clone(adapter)));
        let step = Step {
            tokens,
            sequences: &[SequenceRows { rows: rows.clone(), position: self.computed, pages: &self.pages }],
            lora: &LoraBatch::new(groups.collect()),
            sample: &(0..u32::try_from(tokens.len()).unwrap()).collect::<Vec<_>>(),
        };
        self.computed += tokens.len();
        self.llama.forward(&step, &mut self.kv).unwrap().to_vec2().unwrap()
    }
}

/// Natural log-probabilities.
pub(crate) fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - max).exp()).sum();
    logits.iter().map(|logit| f64::from(*logit) - max - sum.ln()).collect()
}

/// The greatest logit, the lowest token among equals.
pub(crate) fn greedy(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().rev().max_by(|(_, a), (_, b)| a.total_cmp(b));
    u32::try_from(best.unwrap().0).unwrap()
}
