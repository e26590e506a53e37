//! `y = x W^T` by shape, encoding, precision and number of rows; each weight is as large as a model's, so that it comes
//! from where a step finds it.

use std::{hint::black_box, sync::Arc, time::Duration};

use chorus::kernels::{
    linear::{Input, Linear, Precision, Projection},
    panels::{Encoding, Panels},
    pool::Pool,
    simd::Tier,
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Weights that are walked in turn take at least so many bytes: more than a core's own caches.
const WORKING_SET: usize = 48 << 20;

fn floats(len: usize, mut seed: u32) -> Vec<f32> {
    let mut next = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as f32 / 8_388_608.0 - 1.0
    };
    // The cube has tails like a network's.
    (0..len).map(|_| next().powi(3)).collect()
}

fn weights(encoding: Encoding, (outputs, inputs): (usize, usize)) -> Panels {
    let (length, bytes) = encoding.block();
    let mut rows = vec![0_u8; outputs * inputs / length * bytes];
    for (block, stored) in rows.chunks_exact_mut(bytes).enumerate() {
        for (at, byte) in stored.iter_mut().enumerate() {
            *byte = u8::try_from((block * 31 + at * 17) % 256).expect("below 256");
        }
        match encoding {
            Encoding::F32 => stored.copy_from_slice(&0.01_f32.to_le_bytes()),
            Encoding::F16 | Encoding::BF16 => stored.copy_from_slice(&[0x10, 0x20]),
            Encoding::Q4_1 | Encoding::Q5_1 | Encoding::Q4_K | Encoding::Q5_K => {
                stored[..4].copy_from_slice(&[0x10, 0x20, 0x10, 0xa0]);
            }
            Encoding::Q6_K => stored[208..].copy_from_slice(&[0x10, 0x20]),
            Encoding::Q4_0 | Encoding::Q5_0 | Encoding::Q8_0 => {
                stored[..2].copy_from_slice(&[0x10, 0x20]);
            }
        }
    }
    Panels::pack(encoding, (outputs, inputs), &rows, |row| row).expect("blocks are whole")
}

fn linear(c: &mut Criterion) {
    let tier = Tier::best();
    let shapes = [
        ("gate-up", Encoding::Q4_1, 2 * 1536, 576),
        ("down", Encoding::Q4_1, 576, 1536),
        ("head", Encoding::Q8_0, 49152, 576),
        ("gate-up-1b", Encoding::Q4_0, 2 * 8192, 2048),
        ("down-1b", Encoding::Q4_0, 2048, 8192),
        ("down-1b", Encoding::Q4_K, 2048, 8192),
        ("down-1b", Encoding::Q5_K, 2048, 8192),
        ("down-1b", Encoding::Q6_K, 2048, 8192),
    ];
    for (name, encoding, outputs, inputs) in shapes {
        let bytes = Panels::bytes_of(encoding, (outputs, inputs));
        let projection =
            || Projection { weights: Arc::new(weights(encoding, (outputs, inputs))), bias: None };
        let copies: Vec<_> = (0..WORKING_SET.div_ceil(bytes)).map(|_| [projection()]).collect();
        for (precision, threads) in [Precision::Int8, Precision::Int16, Precision::Exact]
            .into_iter()
            .flat_map(|precision| [(precision, 1), (precision, cores())])
        {
            let pool = Pool::new(threads).expect("threads start");
            let mut group = c.benchmark_group(format!(
                "linear/cpu-{tier}-x{threads}/{name}-{encoding:?}/{precision:?}"
            ));
            for rows in [1, 2, 3, 4, 8, 16, 64] {
                let x = floats(rows * inputs, 7);
                group.throughput(Throughput::Elements((2 * rows * inputs * outputs) as u64));
                let mut turn = 0;
                group.bench_function(BenchmarkId::from_parameter(rows), |b| {
                    b.iter(|| {
                        turn += 1;
                        let projections = &copies[turn % copies.len()];
                        let input = Input::Rows;
                        let op = Linear {
                            tier,
                            pool: &pool,
                            precision,
                            input,
                            projections,
                            stacks: &[],
                        };
                        op.apply(black_box(&x), rows, None)
                    });
                });
            }
        }
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What a parallel region costs that has next to nothing to do.
fn region(c: &mut Criterion) {
    let pool = Pool::new(cores()).expect("threads start");
    for tasks in [2, 8, 96] {
        c.bench_function(&format!("region/cpu-x{}/{tasks}", cores()), |b| {
            b.iter(|| {
                pool.run(tasks, |task| {
                    black_box(task);
                });
            });
        });
    }
}

fn settings() -> Criterion {
    let (warm_up, time) = (Duration::from_millis(200), Duration::from_secs(1));
    Criterion::default().sample_size(20).warm_up_time(warm_up).measurement_time(time)
}

criterion_group!(name = benches; config = settings(); targets = linear, region);
criterion_main!(benches);
