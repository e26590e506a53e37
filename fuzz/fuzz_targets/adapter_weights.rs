//! Any `adapter_model.safetensors` beside the configuration of a real adapter is understood or refused; what is
//! understood can be built.
#![no_main]

use std::sync::LazyLock;

use chorus::{
    kernels::{linear::Precision, simd::Tier},
    lora::{Adapter, Base, Digest, Limits, Matrices, peft},
    model::Llama,
};
use libfuzzer_sys::fuzz_target;

static BASE: LazyLock<Llama> = LazyLock::new(|| {
    let base = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/models/tied");
    Llama::load(base.as_ref(), Tier::best(), 1, Precision::Exact).expect("the fixture loads")
});
static CONFIG: &[u8] =
    include_bytes!("../../tests/fixtures/models/tied/adapters/plain/adapter_config.json");

fuzz_target!(|weights: &[u8]| {
    if let Ok(manifest) = peft::read(CONFIG, weights, BASE.sites(), &Limits::default()) {
        for matrices in [Matrices::Native, Matrices::Int8] {
            drop(Adapter::build(Digest::of(CONFIG, weights), &manifest, &*BASE, matrices));
        }
    }
});
