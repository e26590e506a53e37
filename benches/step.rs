//! A whole step of the default base (`cargo run --release -- pull` fetches it): single tokens of one and of sixteen sequences
//! that have 128 positions behind them, a few of one (as where the others are guessed), and a chunk of a prompt; through the base, one adapter, or eight.

use std::{path::Path, sync::Arc, time::Duration};

use candle_core::Device;
use chorus::{
    kernels::{linear::Precision, simd::Tier},
    lora::{Adapter, Base as _, Digest, Limits, LoraBatch, Matrices, peft},
    model::{Kv, KvType, Llama, PAGE, SequenceRows, Step},
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const BEHIND: usize = 128;
const ADAPTERS: [&str; 8] =
    ["formal", "german", "hashtag", "medcode", "pirate", "sentiment", "sql", "support-json"];

fn adapter(root: &Path, name: &str, base: &Llama) -> Arc<Adapter> {
    let read = |file| std::fs::read(root.join("adapters").join(name).join(file));
    let config = read("adapter_config.json").expect("the adapter is there");
    let weights = read("adapter_model.safetensors").expect("the adapter is there");
    let manifest = peft::read(&config, &weights, base.sites(), &Limits::default());
    let manifest = manifest.expect("the adapter fits");
    let digest = Digest::of(&config, &weights);
    Arc::new(Adapter::build(digest, &manifest, base, Matrices::Native).expect("the adapter fits"))
}

fn step(c: &mut Criterion) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = root.join("models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let tier = Tier::best();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for precision in [Precision::Int8, Precision::Int16] {
        let llama = Llama::load(&file, tier, threads, precision)
            .expect("`cargo run --release -- pull smollm2-135m-instruct` fetches it");
        let adapters = ADAPTERS.map(|name| adapter(root, name, &llama));
        let pages_each = BEHIND / PAGE + 256 / PAGE;
        let mut kv = Kv::new(llama.spec(), KvType::F16, 16 * pages_each, &Device::Cpu)
            .expect("there is memory");
        let pages: Vec<Vec<u32>> = (0..16)
            .map(|sequence| {
                let first = u32::try_from(sequence * pages_each).expect("few pages");
                (first..).take(pages_each).collect()
            })
            .collect();
        let mut group = c.benchmark_group(format!("step/cpu-{tier}-x{threads}/{precision:?}"));
        for (name, sequences, rows) in [
            ("decode-1", 1, 1),
            ("guessed-2", 1, 2),
            ("guessed-4", 1, 4),
            ("guessed-8", 1, 8),
            ("decode-3", 3, 1),
            ("decode-16", 16, 1),
            ("prompt-256", 1, 256),
        ] {
            for (through, used) in [("base", 0), ("one", 1), ("eight", 8)] {
                if used > sequences {
                    continue;
                }
                let all = sequences * rows;
                let groups = (0..used).map(|at| {
                    let range = at * all / used..(at + 1) * all / used;
                    (range, Arc::clone(&adapters[at]))
                });
                let lora = LoraBatch::new(groups.collect());
                let tokens: Vec<u32> =
                    (0..all).map(|at| u32::try_from(at % 1000 + 100).expect("small")).collect();
                let of: Vec<_> = (0..sequences)
                    .map(|at| SequenceRows {
                        rows: at * rows..(at + 1) * rows,
                        position: BEHIND,
                        pages: &pages[at],
                    })
                    .collect();
                let sample: Vec<u32> = (1..=sequences)
                    .map(|at| u32::try_from(at * rows - 1).expect("few rows"))
                    .collect();
                let step = Step {
                    tokens: &tokens,
                    sequences: &of,
                    lora: &lora,
                    sample: &sample,
                    pool: &[],
                };
                group.throughput(Throughput::Elements(all as u64));
                group.bench_function(format!("{name}/{through}"), |b| {
                    b.iter(|| llama.forward(&step, &mut kv).expect("a step"));
                });
            }
        }
    }
}

fn settings() -> Criterion {
    let (warm_up, time) = (Duration::from_millis(500), Duration::from_secs(4));
    Criterion::default().sample_size(20).warm_up_time(warm_up).measurement_time(time)
}

criterion_group!(name = benches; config = settings(); targets = step);
criterion_main!(benches);
