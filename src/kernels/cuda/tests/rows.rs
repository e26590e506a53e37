//! Normalisation, gating and the greatest logit.

use proptest::prelude::*;

use super::*;

/// Blocks of a grid beyond the rows there are, as a captured graph has them.
const ROOM: usize = 2;

fn rms_norm<T: Element>(x: &[T], gain: &[T], eps: f32) -> Vec<T> {
    let (hidden, rows) = (gain.len(), x.len() / gain.len());
    let run = |order| {
        let (mut x, mut gain) = (Buffer::new(x, T::GUARD), Buffer::new(gain, T::GUARD));
        let (mut y, mut rows_there) =
            (Buffer::new(&vec![T::GUARD; x.numbers().len()], T::GUARD), count(rows));
        let arguments = [
            x.memory(),
            gain.memory(),
            y.memory(),
            rows_there.memory(),
            hidden.into(),
            Argument::Float(eps),
        ];
        let grid = [rows + ROOM, 1, 1];
        let block = constant("NORM_THREADS");
        launch(&format!("rms_norm_{}", T::NAME), (grid, block), order, &arguments).unwrap();
        y.numbers().to_vec()
    };
    in_both_orders(run)
}

fn rms_norm_is_its_formula<T: Element>(seed: u64, hidden: usize, size: f32) {
    let mut random = Numbers(seed);
    let x: Vec<T> = random.vec(3 * hidden, size);
    let gain: Vec<T> = random.vec(hidden, 2.0);
    let y = rms_norm(&x, &gain, 1e-5);
    for (x, y) in x.chunks(hidden).zip(y.chunks(hidden)) {
        let mean = x.iter().map(|x| x.wide().powi(2)).sum::<f64>() / hidden as f64;
        for ((x, gain), y) in x.iter().zip(&gain).zip(y) {
            let want = x.wide() / (mean + 1e-5).sqrt() * gain.wide();
            assert_close(*y, want, 1e-5 * want.abs());
        }
        assert_eq!(bits(&rms_norm(x, &gain, 1e-5)), bits(y), "alone");
    }
}

fn silu_mul<T: Element>(both: &[T], width: usize) -> Vec<T> {
    let rows = both.len() / (2 * width);
    let run = |blocks: usize, order| {
        let mut both = Buffer::new(both, T::GUARD);
        let mut y = Buffer::new(&vec![T::GUARD; rows * width], T::GUARD);
        let mut rows_there = count(rows);
        let arguments = [both.memory(), y.memory(), rows_there.memory(), width.into()];
        let shape = ([rows + ROOM, blocks, 1], constant("GATE_THREADS"));
        launch(&format!("silu_mul_{}", T::NAME), shape, order, &arguments).unwrap();
        y.numbers().to_vec()
    };
    let y = in_both_orders(|order| run(1, order));
    assert_eq!(bits(&y), bits(&run(3, Order::Forwards)));
    y
}

fn silu_mul_is_its_formula<T: Element>(seed: u64, width: usize, size: f32) {
    let mut random = Numbers(seed);
    let both: Vec<T> = random.vec(3 * 2 * width, size);
    let y = silu_mul(&both, width);
    for (both, y) in both.chunks(2 * width).zip(y.chunks(width)) {
        let (gates, ups) = both.split_at(width);
        for ((gate, up), y) in gates.iter().zip(ups).zip(y) {
            let want = gate.wide() / (1.0 + (-gate.wide()).exp()) * up.wide();
            assert_close(*y, want, 1e-5 * want.abs());
        }
    }
}

/// Mirrors `Best` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
struct Best {
    logit: f32,
    token: i32,
}

/// The tokens that rows `[rows, vocab]` give, negative for none.
fn greedy<T: Copy + PartialEq>(name: &str, logits: &[T], vocab: usize, guard: T) -> Vec<i32> {
    let (rows, parts) = (logits.len() / vocab, vocab.div_ceil(constant("GREEDY_PART")));
    let run = |order| {
        let mut logits = Buffer::new(logits, guard);
        let none = Best { logit: f32::INFINITY, token: -7 };
        let (mut bests, mut tokens) =
            (Buffer::new(&vec![none; rows * parts], none), Buffer::new(&vec![-7; rows], -7));
        let mut there = count(rows);
        let arguments = [logits.memory(), bests.memory(), there.memory(), vocab.into()];
        let shape = ([rows + ROOM, parts, 1], constant("GREEDY_THREADS"));
        launch(&format!("greedy_parts_{name}"), shape, order, &arguments).unwrap();
        let arguments = [bests.memory(), tokens.memory(), there.memory(), parts.into()];
        launch("greedy_pick", ([rows + ROOM, 1, 1], 32), order, &arguments).unwrap();
        bests.numbers();
        tokens.numbers().to_vec()
    };
    let tokens = run(Order::Forwards);
    assert_eq!(tokens, run(Order::Backwards));
    tokens
}

/// As `Sampler` has it.
fn greatest(logits: &[f64]) -> i32 {
    if logits.iter().any(|logit| logit.is_nan() || *logit == f64::INFINITY) {
        return -1;
    }
    let mut best = (f64::NEG_INFINITY, -1);
    for (token, logit) in (0..).zip(logits) {
        if *logit > best.0 {
            best = (*logit, token);
        }
    }
    best.1
}

fn greedy_is_the_greatest<T: Element>(logits: &[f32], vocab: usize) {
    let logits: Vec<T> = logits.iter().map(|logit| T::of(*logit)).collect();
    let want: Vec<i32> = logits
        .chunks(vocab)
        .map(|row| greatest(&row.iter().map(|logit| logit.wide()).collect::<Vec<_>>()))
        .collect();
    assert_eq!(greedy(T::NAME, &logits, vocab, T::GUARD), want);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn rms_norm_is_right(
        seed: u64,
        hidden in 1_usize..700,
        size in prop::sample::select(vec![1e-7_f32, 0.01, 1.0, 6e4]),
    ) {
        rms_norm_is_its_formula::<f16>(seed, hidden, size);
        rms_norm_is_its_formula::<bf16>(seed, hidden, size);
    }

    #[test]
    fn silu_mul_is_right(
        seed: u64,
        width in 1_usize..900,
        size in prop::sample::select(vec![1e-6_f32, 1.0, 20.0, 200.0]),
    ) {
        silu_mul_is_its_formula::<f16>(seed, width, size);
        silu_mul_is_its_formula::<bf16>(seed, width, size);
    }

    #[test]
    fn greedy_takes_the_lowest_of_the_greatest(
        seed: u64,
        vocab in prop_oneof![1_usize..300, 8190_usize..8195, 16000_usize..25000],
        values in 1_usize..400,
        odd in prop::sample::select(vec![0.0, f32::NEG_INFINITY, f32::NAN, f32::INFINITY]),
    ) {
        let mut random = Numbers(seed);
        // Few different values, so that many are the greatest; each fits all types.
        let mut logits: Vec<f32> = (0..3 * vocab).map(|_| random.below(values) as f32 / 4.0 - 50.0).collect();
        logits[random.below(2 * vocab)] = odd;
        logits[2 * vocab..].fill(f32::NEG_INFINITY);
        if values % 2 == 0 {
            logits[2 * vocab + random.below(vocab)] = -3e4;
        }
        let wide: Vec<f64> = logits.iter().copied().map(f64::from).collect();
        let want: Vec<i32> = wide.chunks(vocab).map(greatest).collect();
        prop_assert_eq!(greedy("f32", &logits, vocab, f32::NAN), want);
        greedy_is_the_greatest::<f16>(&logits, vocab);
        greedy_is_the_greatest::<bf16>(&logits, vocab);
    }
}
