//! Normalisation, gating and the greatest logit.

use std::{ffi::c_void, ptr::null_mut};

use proptest::prelude::*;

use super::*;

/// Blocks of a grid beyond the rows there are, as a captured graph has them.
const ROOM: usize = 2;

/// Rows of a step before a norm.
struct Norm {
    hidden: usize,
    /// `[rows, hidden]`
    x: Vec<f32>,
    /// What is added to `x` first.
    y: Option<Vec<f32>>,
    gain: Vec<f32>,
    /// The gains of adapters by their slots.
    gains: Vec<Option<Vec<f32>>>,
    /// `[rows, PARTS]`
    slots: Vec<i32>,
    /// The rows that are wanted, where not all are.
    from: Option<Vec<i32>>,
}

/// Parts of a mix in the tests of norms, which look at the first alone.
const PARTS: usize = 3;
/// Norms of a model in the tests, and which of them is tested.
const NORMS: usize = 4;
const OWN: usize = 2;
const EPS: f32 = 1e-5;

impl Norm {
    fn new(random: &mut Numbers, (rows, hidden): (usize, usize), size: f32) -> Self {
        let some = |random: &mut Numbers| random.below(2) == 0;
        let gains = (0..3).map(|_| some(random).then(|| random.vec(hidden, 2.0))).collect();
        let slots = (0..rows * PARTS).map(|_| i32::try_from(random.below(4)).expect("few") - 1);
        let slots = slots.collect();
        let x = random.vec(rows * hidden, size);
        let y = some(random).then(|| random.vec(rows * hidden, size));
        let from = some(random).then(|| random.shuffled(rows)[..rows.div_ceil(2)].to_vec());
        Self { hidden, x, y, gain: random.vec(hidden, 2.0), gains, slots, from }
    }

    fn rows(&self) -> usize {
        self.x.len() / self.hidden
    }

    /// The rows that are wanted.
    fn wanted(&self) -> Vec<usize> {
        match &self.from {
            Some(from) => from.iter().map(|row| usize::try_from(*row).expect("a row")).collect(),
            None => (0..self.rows()).collect(),
        }
    }

    /// The table of gains as a device has it, whose entries beside this norm's, and before slot 0, are others' gains.
    fn table(&self) -> (Buffer<*mut c_void>, Vec<Buffer<f32>>) {
        let mut gains = vec![Buffer::new(&vec![1e9; self.hidden], f32::NAN)];
        let others = gains[0].address();
        let mut table = vec![others; (1 + self.gains.len()) * NORMS];
        for (slot, gain) in self.gains.iter().enumerate() {
            table[(1 + slot) * NORMS + OWN] = gain.as_ref().map_or(null_mut(), |gain| {
                gains.push(Buffer::new(gain, f32::NAN));
                gains.last_mut().expect("it was just pushed").address()
            });
        }
        (Buffer::new(&table, null_mut()), gains)
    }

    /// x after it, and the norms.
    fn run<T: Element>(&self, order: Order) -> (Vec<f32>, Vec<T>) {
        let wanted = self.wanted().len();
        let (mut x, mut gain) = (Buffer::new(&self.x, f32::NAN), Buffer::new(&self.gain, f32::NAN));
        let mut y = self.y.as_ref().map(|y| Buffer::new(y, f32::NAN));
        let mut from = self.from.as_ref().map(|from| Buffer::new(from, 1 << 20));
        let (mut table, _gains) = self.table();
        let mut slots = Buffer::new(&self.slots, 1 << 20);
        let (mut n, mut there) =
            (Buffer::new(&vec![T::GUARD; wanted * self.hidden], T::GUARD), count(wanted));
        let without = self.gains.iter().all(Option::is_none);
        let null = || Argument::Memory(null_mut());
        let arguments = [
            x.memory(),
            y.as_mut().map_or_else(null, Buffer::memory),
            gain.memory(),
            if without { null() } else { table.memory_from(NORMS + OWN) },
            NORMS.into(),
            if without { null() } else { slots.memory() },
            PARTS.into(),
            from.as_mut().map_or_else(null, Buffer::memory),
            n.memory(),
            there.memory(),
            self.hidden.into(),
            Argument::Float(EPS),
        ];
        let shape = ([wanted + ROOM, 1, 1], constant("NORM_THREADS"));
        launch(&format!("rms_norm_{}", T::NAME), shape, order, &arguments).unwrap();
        (x.numbers().to_vec(), n.numbers().to_vec())
    }

    fn check<T: Element>(&self) {
        let (x, n) = self.run::<T>(Order::Forwards);
        let (backwards_x, backwards) = self.run::<T>(Order::Backwards);
        assert_eq!((bits(&x), bits(&n)), (bits(&backwards_x), bits(&backwards)));
        let wanted = self.wanted();
        for (row, x) in x.chunks(self.hidden).enumerate() {
            let at = row * self.hidden;
            let added =
                |i: usize| self.y.as_ref().filter(|_| wanted.contains(&row)).map(|y| y[at + i]);
            let want: Vec<f32> = (0..self.hidden)
                .map(|i| added(i).map_or(self.x[at + i], |y| self.x[at + i] + y))
                .collect();
            assert_eq!(bits(x), bits(&want), "the residual stream of row {row}");
        }
        for (row, n) in wanted.into_iter().zip(n.chunks(self.hidden)) {
            let x = &x[row * self.hidden..][..self.hidden];
            let slot = usize::try_from(self.slots[row * PARTS]);
            let own = slot.ok().and_then(|slot| self.gains[slot].as_ref());
            let gain = own.unwrap_or(&self.gain);
            let mean = x.iter().map(|x| x.wide().powi(2)).sum::<f64>() / self.hidden as f64;
            for ((x, gain), n) in x.iter().zip(gain).zip(n) {
                let want = x.wide() / (mean + f64::from(EPS)).sqrt() * gain.wide();
                assert_close(*n, want, 1e-5 * want.abs());
            }
            let alone = Self {
                x: x.to_vec(),
                y: None,
                gain: self.gain.clone(),
                gains: self.gains.clone(),
                slots: self.slots[row * PARTS..][..PARTS].to_vec(),
                from: None,
                ..*self
            };
            assert_eq!(bits(&alone.run::<T>(Order::Forwards).1), bits(n), "alone");
        }
    }
}

/// `y [rows, width]` with the base's bias added where a row of `slots [rows, parts]` has no adapter.
fn add_bias(y: &[f32], bias: &[f32], slots: Option<&[i32]>, parts: usize) -> Vec<f32> {
    let rows = y.len() / bias.len();
    let run = |blocks: usize, order| {
        let (mut y, mut bias) = (Buffer::new(y, f32::NAN), Buffer::new(bias, f32::NAN));
        let (mut slots, mut there) = (slots.map(|slots| Buffer::new(slots, -1)), count(rows));
        let width = bias.numbers().len();
        let arguments = [
            y.memory(),
            bias.memory(),
            slots.as_mut().map_or(Argument::Memory(null_mut()), Buffer::memory),
            parts.into(),
            there.memory(),
            width.into(),
        ];
        let shape = ([rows + ROOM, blocks, 1], constant("BIAS_THREADS"));
        launch("add_bias", shape, order, &arguments).unwrap();
        y.numbers().to_vec()
    };
    let y = in_both_orders(|order| run(1, order));
    assert_eq!(bits(&y), bits(&run(3, Order::Forwards)));
    y
}

fn silu_mul<T: Element>(both: &[f32], width: usize) -> Vec<T> {
    let rows = both.len() / (2 * width);
    let run = |blocks: usize, order| {
        let mut both = Buffer::new(both, f32::NAN);
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
    let both: Vec<f32> = random.vec(3 * 2 * width, size);
    let y: Vec<T> = silu_mul(&both, width);
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
        shape in (1_usize..6, 1_usize..700),
        size in prop::sample::select(vec![1e-7_f32, 0.01, 1.0, 1e6]),
    ) {
        let norm = Norm::new(&mut Numbers(seed), shape, size);
        match seed % 3 {
            0 => norm.check::<f16>(),
            1 => norm.check::<bf16>(),
            _ => norm.check::<f32>(),
        }
    }

    #[test]
    fn the_bases_bias_is_for_rows_without_an_adapter(
        seed: u64,
        (rows, width) in (1_usize..6, 1_usize..700),
        parts in prop::option::of(1_usize..5),
    ) {
        let mut random = Numbers(seed);
        let (y, bias) = (random.vec(rows * width, 1.0), random.vec(width, 1.0));
        let slots = parts.map(|parts| -> Vec<i32> {
            (0..rows * parts).map(|_| if random.below(3) == 0 { 0 } else { -1 }).collect()
        });
        let got = add_bias(&y, &bias, slots.as_deref(), parts.unwrap_or(1));
        for (row, (got, y)) in got.chunks(width).zip(y.chunks(width)).enumerate() {
            let adapters = parts.zip(slots.as_ref());
            let base = adapters.is_none_or(|(parts, slots)| {
                slots[row * parts..][..parts].iter().all(|slot| *slot < 0)
            });
            let biased = y.iter().zip(&bias).map(|(y, bias)| if base { y + bias } else { *y });
            prop_assert_eq!(bits(got), bits(&biased.collect::<Vec<_>>()), "row {}", row);
        }
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
