//! Any `adapter_config.json` beside the weights of a real adapter is understood or refused.
#![no_main]

use std::sync::LazyLock;

use chorus::{
    kernels::{linear::Precision, simd::Tier},
    lora::{Base, Limits, peft},
    model::Llama,
};
use libfuzzer_sys::fuzz_target;

static BASE: LazyLock<Llama> = LazyLock::new(|| {
    let base = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/models/tied");
    Llama::load(base.as_ref(), Tier::best(), 1, Precision::Exact).expect("the fixture loads")
});
static WEIGHTS: &[u8] =
    include_bytes!("../../tests/fixtures/models/tied/adapters/plain/adapter_model.safetensors");

fuzz_target!(|config: &[u8]| {
    drop(peft::read(config, WEIGHTS, BASE.sites(), &Limits::default()));
});
