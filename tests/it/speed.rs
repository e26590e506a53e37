#![allow(unsafe_code)]
use std::sync::Arc;
#[derive(Clone,Copy)] struct Instant(f64);
impl Instant { fn now() -> Self { let mut t: libc::timespec = unsafe { std::mem::zeroed() }; unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut t); } Self(t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9) } fn elapsed(&self) -> std::time::Duration { std::time::Duration::from_secs_f64(Self::now().0 - self.0) } }
use chorus::{lora::LoraBatch, model::{Kv, SequenceRows, Step}};
use crate::world::*;
#[test]
fn speed() {
    let t = Instant::now();
    let llama = chorus::model::Llama::load(&fixtures().join("../../models/SmolLM2-135M-Instruct.Q4_1.gguf"), chorus::kernels::simd::Tier::best(), 1).unwrap();
    println!("load {:?} bytes {}", t.elapsed(), llama.bytes());
    let adapters: Vec<_> = folders(&fixtures().join("../../adapters")).iter().map(|f| { let t = Instant::now(); let a = adapter(f, &llama).unwrap(); println!("{} {:?} {}", name(f), t.elapsed(), a.bytes()); a }).collect();
    for (n, lora, ctx) in [(1usize, false, 0usize), (1, true, 0), (16, false, 64), (16, true, 64), (64, false, 64), (8, false, 64)] {
        let mut kv = Kv::new(llama.spec(), 64 * 16, &candle_core::Device::Cpu).unwrap();
        let pages: Vec<Vec<u32>> = (0..n as u32).map(|s| (s * 16..s * 16 + 16).collect()).collect();
        let mut times = vec![];
        for i in 0..40 {
            let tokens: Vec<u32> = (0..n as u32).map(|s| 100 + s * 7 + i as u32).collect();
            let sequences: Vec<_> = (0..n).map(|s| SequenceRows { rows: s..s + 1, position: ctx + i, pages: &pages[s] }).collect();
            let groups = if lora { (0..n).map(|s| (s..s + 1, Arc::clone(&adapters[s % 8]))).collect() } else { vec![] };
            let batch = LoraBatch::new(groups);
            let sample: Vec<u32> = (0..n as u32).collect();
            let t = Instant::now();
            llama.forward(&Step { tokens: &tokens, sequences: &sequences, lora: &batch, sample: &sample }, &mut kv).unwrap();
            times.push(t.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        println!("n={n} lora={lora}: median {:.2} ms -> {:.0} tok/s", times[20] * 1e3, n as f64 / times[20]);
    }
    for len in [64usize, 256, 512] {
        let mut kv = Kv::new(llama.spec(), 200, &candle_core::Device::Cpu).unwrap();
        let pages: Vec<u32> = (0..200).collect();
        let tokens = vec![77u32; len];
        for start in [0, 1024, 2048] {
        let t = Instant::now();
        llama.forward(&Step { tokens: &tokens, sequences: &[SequenceRows { rows: 0..len, position: start, pages: &pages }], lora: &LoraBatch::default(), sample: &[len as u32 - 1] }, &mut kv).unwrap();
        println!("prefill {len} at {start}: {:?} -> {:.0} tok/s", t.elapsed(), len as f64 / t.elapsed().as_secs_f64());
        }
    }
}
