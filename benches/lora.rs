//! What adapters add to a product: none, one for all rows, or another for every row, each in half precision and as 8-bit codes.
//! As many adapters are walked in turn as fill the processor's caches, as a server's are.

use std::{hint::black_box, sync::Arc, time::Duration};

use chorus::kernels::{
    linear::{Input, Linear, Precision, Projection},
    lora::{Delta, LowRank, Stack, StackRows, padded_inputs, padded_outputs},
    memory::Slab,
    numbers::{NumberType, Numbers},
    panels::{Encoding, Panels},
    pool::Pool,
    simd::Tier,
};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

const INPUTS: usize = 576;
/// Gate and up projection of the default base.
const OUTPUTS: [usize; 2] = [1536, 1536];
const ADAPTERS: usize = 256;

fn value(at: usize) -> f32 {
    (at * 37 % 101) as f32 / 101.0 - 0.5
}

fn numbers(kind: NumberType, len: usize) -> Numbers {
    let slab = Slab::new(Numbers::bytes_of(kind, len)).expect("there is memory");
    let mut all = Numbers::zeros(&slab, kind, len).expect("there is room");
    all.write(0, &(0..len).map(value).collect::<Vec<_>>());
    all
}

fn stack(kind: NumberType, rank: usize) -> Stack {
    let mut first = 0;
    let sites = OUTPUTS.map(|outputs| {
        let b = numbers(kind, rank * padded_outputs(outputs));
        first += rank;
        let low_rank = LowRank { first: first - rank, rank, scale: 2.0, b, bias: None };
        Delta { low_rank: Some(low_rank), ..Delta::default() }
    });
    let a = numbers(kind, first * padded_inputs(INPUTS));
    Stack { a, rank: first, inputs: INPUTS, sites: sites.into() }
}

fn weights(outputs: usize) -> Projection {
    let mut rows = vec![0x5a_u8; outputs * INPUTS / 32 * 20];
    rows.chunks_exact_mut(20).for_each(|block| block[..4].copy_from_slice(&[0x10, 0x20, 0, 0xa0]));
    let weights = Panels::pack(Encoding::Q4_1, (outputs, INPUTS), &rows, |row| row);
    Projection { weights: Arc::new(weights.expect("blocks are whole")), bias: None }
}

/// Products of `rows` rows, with the next of `stacks` for each `run` of them, or with none.
fn measure(
    c: &mut Criterion,
    (group, name): (&str, &str),
    (rows, run): (usize, Option<usize>),
    (pool, projections, stacks): (&Pool, &[Projection], &[Stack]),
) {
    let x: Vec<f32> = (0..rows * INPUTS).map(value).collect();
    let mut turn = 0;
    c.benchmark_group(group).bench_function(BenchmarkId::new(name, rows), |b| {
        b.iter(|| {
            let starts = run.map(|run| (0..rows).step_by(run).map(move |start| (start, run)));
            let mut next = || {
                turn += 1;
                &stacks[turn % stacks.len()]
            };
            let rows_of =
                |(start, run)| StackRows { rows: start..start + run, stack: next(), weight: 1.0 };
            let stacks: Vec<_> = starts.into_iter().flatten().map(rows_of).collect();
            let op = Linear {
                tier: Tier::best(),
                pool,
                precision: Precision::default(),
                input: Input::Rows,
                projections,
                stacks: &stacks,
            };
            op.apply(black_box(&x), rows, None)
        });
    });
}

fn lora(c: &mut Criterion) {
    let tier = Tier::best();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = Pool::new(threads).expect("threads start");
    let projections = OUTPUTS.map(weights);
    for rank in [8, 16, 64] {
        let group = format!("lora/cpu-{tier}-x{threads}/gate-up-r{rank}");
        let kinds = [("f16", NumberType::F16), ("int8", NumberType::Int8)];
        let stacks = kinds.map(|(name, kind)| {
            (name, (0..ADAPTERS).map(|_| stack(kind, rank)).collect::<Vec<_>>())
        });
        for rows in [1, 16, 64] {
            measure(c, (&group, "none"), (rows, None), (&pool, &projections, &[]));
            // The two types side by side: what else the machine does then concerns both.
            for (shared, run) in [("shared", rows), ("each", 1)] {
                for (kind, stacks) in &stacks {
                    let name = format!("{shared}-{kind}");
                    measure(c, (&group, &name), (rows, Some(run)), (&pool, &projections, stacks));
                }
            }
        }
    }
}

fn settings() -> Criterion {
    let (warm_up, time) = (Duration::from_millis(200), Duration::from_secs(1));
    Criterion::default().sample_size(20).warm_up_time(warm_up).measurement_time(time)
}

criterion_group!(name = benches; config = settings(); targets = lora);
criterion_main!(benches);
