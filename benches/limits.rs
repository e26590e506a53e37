//! What the machine can at most do: products a second in registers, and bytes a second from memory. Other benches'
//! figures are read against these.

use std::{hint::black_box, time::Duration};

use chorus::kernels::{
    memory::{Part, Slab},
    pool::Pool,
    simd::{Kernel, LANES, Simd, Tier},
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// Chains that do not wait for each other, and how often each is gone through.
const CHAINS: usize = 8;
const TURNS: usize = 1000;

#[derive(Clone, Copy)]
enum Product {
    /// Fused multiply-adds of 32-bit floats.
    Float,
    /// Of 16-bit integers, two in a lane.
    Short,
    /// Of 8-bit integers, four in a lane.
    Byte,
}

impl Product {
    fn in_lane(self) -> usize {
        match self {
            Self::Float => 1,
            Self::Short => 2,
            Self::Byte => 4,
        }
    }
}

struct Chains(Product, i32);

#[expect(clippy::inline_always, reason = "compiled once per tier")]
impl Kernel for Chains {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let Self(product, seed) = self;
        let (x, y) = (simd.splat_int(seed), simd.splat_int(seed + 1));
        let (a, b) = (simd.to_float(x), simd.to_float(y));
        let mut floats = [a; CHAINS];
        let mut integers = [x; CHAINS];
        for _ in 0..TURNS {
            for chain in 0..CHAINS {
                match product {
                    Product::Float => floats[chain] = simd.fma(a, b, floats[chain]),
                    Product::Short => integers[chain] = simd.dot(integers[chain], x, y),
                    Product::Byte => integers[chain] = simd.dot_bytes(integers[chain], x, y),
                }
            }
        }
        let floats = floats.into_iter().fold(a, |sum, chain| simd.add(sum, chain));
        let integers = integers.into_iter().fold(x, |sum, chain| simd.add_int(sum, chain));
        simd.sum(simd.add(floats, simd.to_float(integers)))
    }
}

struct Read<'a>(&'a [u8]);

#[expect(clippy::inline_always, reason = "compiled once per tier")]
impl Kernel for Read<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let mut sums = [simd.splat_int(0); 4];
        for line in self.0.as_chunks::<{ 16 * LANES }>().0 {
            for (sum, word) in sums.iter_mut().zip(line.as_chunks::<{ 4 * LANES }>().0) {
                *sum = simd.add_int(*sum, simd.load_words(word));
            }
        }
        let sum = sums.into_iter().fold(simd.splat_int(0), |sum, other| simd.add_int(sum, other));
        simd.sum(simd.to_float(sum))
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn products(c: &mut Criterion) {
    let tier = Tier::best();
    let mut group = c.benchmark_group(format!("limits/cpu-{tier}-x1/products"));
    for (name, product) in
        [("f32", Product::Float), ("int16", Product::Short), ("int8", Product::Byte)]
    {
        let operations = 2 * CHAINS * TURNS * LANES * product.in_lane();
        group.throughput(Throughput::Elements(operations as u64));
        group.bench_function(name, |b| b.iter(|| tier.run(Chains(product, black_box(3)))));
    }
}

fn memory(c: &mut Criterion) {
    let tier = Tier::best();
    for threads in [1, cores()] {
        let pool = Pool::new(threads).expect("threads start");
        let mut group = c.benchmark_group(format!("limits/cpu-{tier}-x{threads}/read"));
        for mebibytes in [16, 96, 768] {
            let slab = Slab::new(mebibytes << 20).expect("there is memory");
            let mut bytes: Part = slab.take(mebibytes << 20).expect("there is room");
            bytes.fill(1);
            group.throughput(Throughput::Bytes(bytes.len() as u64));
            group.bench_function(format!("{mebibytes}MiB"), |b| {
                b.iter(|| {
                    let parts = 4 * threads;
                    let part = bytes.len() / parts;
                    pool.run(parts, |index| {
                        black_box(tier.run(Read(&bytes[index * part..(index + 1) * part])));
                    });
                });
            });
        }
    }
}

fn settings() -> Criterion {
    let (warm_up, time) = (Duration::from_millis(200), Duration::from_secs(2));
    Criterion::default().sample_size(20).warm_up_time(warm_up).measurement_time(time)
}

criterion_group!(name = benches; config = settings(); targets = products, memory);
criterion_main!(benches);
