//! Rotation, and attention over pages.

use proptest::prelude::*;

use super::*;
use crate::kernels::elementwise::Angles;

#[derive(Clone, Copy, Debug)]
struct Heads {
    queries: usize,
    keys: usize,
    dim: usize,
    window: Option<usize>,
}

impl Heads {
    fn argument(self) -> Argument {
        let all = [self.queries, self.keys, self.dim, self.window.unwrap_or(0)];
        Argument::Ints(all.map(|number| number.try_into().expect("small")))
    }

    /// Width of a row of queries, keys and values.
    fn width(self) -> usize {
        (self.queries + 2 * self.keys) * self.dim
    }

    fn first_visible(self, position: usize) -> usize {
        (position + 1).saturating_sub(self.window.unwrap_or(usize::MAX))
    }
}

/// One row: a sequence and a position in it.
type Row = (usize, usize);

/// The pages of some sequences.
struct Cache<T> {
    heads: Heads,
    /// Pages of a sequence.
    each: usize,
    /// `[sequences, each]`
    table: Vec<i32>,
    /// `[pages, key heads, PAGE, dim]`; where no sequence has been, no numbers.
    keys: Vec<T>,
    values: Vec<T>,
}

impl<T: Element> Cache<T> {
    fn new(random: &mut Numbers, heads: Heads, sequences: usize, positions: usize) -> Self {
        let each = positions.div_ceil(PAGE);
        let len = sequences * each * heads.keys * PAGE * heads.dim;
        let table = random.shuffled(sequences * each);
        Self { heads, each, table, keys: vec![T::GUARD; len], values: vec![T::GUARD; len] }
    }

    /// Where the numbers of a key head at a position begin.
    fn place(&self, (sequence, position): Row, head: usize) -> usize {
        let page = self.table[sequence * self.each + position / PAGE];
        let page = usize::try_from(page).expect("a page");
        ((page * self.heads.keys + head) * PAGE + position % PAGE) * self.heads.dim
    }

    /// Gives a sequence keys and values at all positions below `end`.
    fn fill(&mut self, random: &mut Numbers, sequence: usize, end: usize, size: f32) {
        let Heads { keys, dim, .. } = self.heads;
        for position in 0..end {
            for head in 0..keys {
                let at = self.place((sequence, position), head);
                self.keys[at..at + dim].copy_from_slice(&random.vec(dim, size));
                self.values[at..at + dim].copy_from_slice(&random.vec(dim, size));
            }
        }
    }

    /// The kernels' device memory.
    fn device(&self, rows: &[Row]) -> Device<T> {
        let ints = |number: fn(&Row) -> usize| {
            let numbers = rows.iter().map(|row| number(row).try_into().expect("small"));
            Buffer::new(&numbers.collect::<Vec<i32>>(), 1 << 20)
        };
        Device {
            keys: Buffer::new(&self.keys, T::GUARD),
            values: Buffer::new(&self.values, T::GUARD),
            table: Buffer::new(&self.table, 1 << 20),
            sequences: ints(|row| row.0),
            positions: ints(|row| row.1),
            there: count(rows.len()),
        }
    }

    /// Attention of `rows`, whose queries are in `qkv`, by splits and merged.
    fn by_splits(&self, qkv: &[f32], rows: &[Row], order: Order) -> Vec<T> {
        let Heads { queries, keys, dim, .. } = self.heads;
        let splits = (self.each * PAGE).div_ceil(constant("SPLIT"));
        let mut device = self.device(rows);
        let mut qkv = Buffer::new(qkv, f32::NAN);
        let states = rows.len() * queries * splits;
        let mut answers = Buffer::new(&vec![f32::NAN; states * dim], f32::NAN);
        let mut states = Buffer::new(&vec![[f32::NAN; 2]; states], [f32::NAN; 2]);
        let mut y = Buffer::new(&vec![T::GUARD; rows.len() * queries * dim], T::GUARD);
        let block = constant("ATTENTION_THREADS");
        let mut arguments = vec![qkv.memory()];
        arguments.extend(device.cache(self.each));
        arguments.extend([self.heads.argument(), answers.memory(), states.memory()]);
        let shape = ([rows.len() + 1, keys, splits], block);
        launch(&format!("attention_splits_{}", T::NAME), shape, order, &arguments).unwrap();
        let arguments = [
            answers.memory(),
            states.memory(),
            device.positions.memory(),
            device.there.memory(),
            self.heads.argument(),
            splits.into(),
            y.memory(),
        ];
        let shape = ([rows.len() + 1, queries, 1], block);
        launch(&format!("attention_combine_{}", T::NAME), shape, order, &arguments).unwrap();
        answers.numbers();
        states.numbers();
        y.numbers().to_vec()
    }

    /// The same without room for splits.
    fn whole(&self, qkv: &[f32], rows: &[Row], order: Order) -> Vec<T> {
        let Heads { queries, keys, dim, .. } = self.heads;
        let mut device = self.device(rows);
        let mut qkv = Buffer::new(qkv, f32::NAN);
        let mut y = Buffer::new(&vec![T::GUARD; rows.len() * queries * dim], T::GUARD);
        let mut arguments = vec![qkv.memory()];
        arguments.extend(device.cache(self.each));
        arguments.extend([self.heads.argument(), y.memory()]);
        let shape = ([rows.len() + 1, keys, 1], constant("ATTENTION_THREADS"));
        launch(&format!("attention_whole_{}", T::NAME), shape, order, &arguments).unwrap();
        y.numbers().to_vec()
    }

    /// The plain formula for one query of a row: each number with the error that rounding of scores may bring.
    fn reference(&self, query: &[f32], row: Row, head: usize) -> Vec<(f64, f64)> {
        let dim = self.heads.dim;
        let at = |position| self.place((row.0, position), head);
        let seen = self.heads.first_visible(row.1)..row.1 + 1;
        let root = (dim as f64).sqrt();
        let scores: Vec<(f64, f64)> = seen
            .clone()
            .map(|position| {
                let terms = self.keys[at(position)..][..dim].iter().zip(query);
                let terms = terms.map(|(key, query)| key.wide() * query.wide() / root);
                terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
            })
            .collect();
        let greatest = scores.iter().map(|score| score.0).fold(f64::NEG_INFINITY, f64::max);
        let size = scores.iter().map(|score| score.1).fold(0.0, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score.0 - greatest).exp()).collect();
        let total: f64 = weights.iter().sum();
        let of_dimension = |d: usize| {
            let values = seen.clone().map(|position| self.values[at(position) + d].wide());
            let (mut sum, mut most) = (0.0, 0.0_f64);
            for (value, weight) in values.zip(&weights) {
                sum += value * weight / total;
                most = most.max(value.abs());
            }
            (sum, ((size * 1e-6).exp_m1() * 2.0 + 1e-5) * most)
        };
        (0..dim).map(of_dimension).collect()
    }

    /// Holds the rows against their formula, against each other way of computing them, and alone.
    fn check(&self, random: &mut Numbers, rows: &[Row], size: f32) {
        let Heads { queries, keys, dim, .. } = self.heads;
        let (width, out) = (self.heads.width(), queries * dim);
        let qkv: Vec<f32> = random.vec(rows.len() * width, size);
        let got = in_both_orders(|order| self.by_splits(&qkv, rows, order));
        let whole = in_both_orders(|order| self.whole(&qkv, rows, order));
        assert_eq!(bits(&whole), bits(&got), "split after split");
        for (i, row) in rows.iter().enumerate() {
            let (qkv, got) = (&qkv[i * width..][..width], &got[i * out..][..out]);
            let alone = self.by_splits(qkv, &[*row], Order::Forwards);
            assert_eq!(bits(&alone), bits(got), "{row:?} alone");
            for (head, (query, got)) in qkv.chunks(dim).zip(got.chunks(dim)).enumerate() {
                let want = self.reference(query, *row, head / (queries / keys));
                for (got, (want, error)) in got.iter().zip(want) {
                    assert_close(*got, want, error);
                }
            }
        }
    }
}

fn wide<T: Element>(numbers: &[T]) -> Vec<f32> {
    numbers.iter().map(|number| number.single()).collect()
}

fn narrow<T: Element>(numbers: &[f32]) -> Vec<T> {
    numbers.iter().map(|number| T::of(*number)).collect()
}

struct Device<T> {
    keys: Buffer<T>,
    values: Buffer<T>,
    table: Buffer<i32>,
    sequences: Buffer<i32>,
    positions: Buffer<i32>,
    there: Buffer<i32>,
}

impl<T: Element> Device<T> {
    /// Keys, values, and which rows find them where.
    fn cache(&mut self, each: usize) -> [Argument; 7] {
        [
            self.keys.memory(),
            self.values.memory(),
            self.table.memory(),
            each.into(),
            self.sequences.memory(),
            self.positions.memory(),
            self.there.memory(),
        ]
    }
}

fn shape() -> impl Strategy<Value = Heads> {
    let dims = prop::sample::select(vec![8_usize, 16, 24, 64, 80, 128, 256]);
    let window = prop::option::of(prop_oneof![1_usize..40, 200_usize..400]);
    (1_usize..3, 1_usize..11, dims, window).prop_map(|(keys, group, dim, window)| Heads {
        queries: keys * group,
        keys,
        dim,
        window,
    })
}

/// Rows of two sequences: their last ones, and any before.
fn attention_is_its_formula<T: Element>(seed: u64, heads: Heads, lengths: [usize; 2], size: f32) {
    let mut random = Numbers(seed);
    let mut cache = Cache::<T>::new(&mut random, heads, 2, lengths[0].max(lengths[1]));
    for (sequence, length) in lengths.into_iter().enumerate() {
        cache.fill(&mut random, sequence, length, size);
    }
    let rows = [(1, lengths[1] - 1), (0, random.below(lengths[0])), (0, lengths[0] - 1)];
    cache.check(&mut random, &rows, size);
}

/// Rotated queries, keys and values of rows where they belong, and all else as it was.
fn rope_and_write_is_right<T: Element>(random: &mut Numbers, heads: Heads, rows: &[Row]) {
    let Heads { queries, keys, dim, .. } = heads;
    let (width, half, positions) = (heads.width(), dim / 2, 70);
    let mut cache = Cache::<T>::new(random, heads, 2, positions);
    let cos: Vec<f32> = (0..positions * half).map(|_| random.unit()).collect();
    let sin: Vec<f32> = (0..positions * half).map(|_| random.unit()).collect();
    let qkv: Vec<f32> = random.vec(rows.len() * width, 3.0);
    let run = |order| {
        let mut device = cache.device(rows);
        let (mut cosines, mut sines) = (Buffer::new(&cos, f32::NAN), Buffer::new(&sin, f32::NAN));
        let mut all = Buffer::new(&qkv, f32::NAN);
        let mut arguments = vec![all.memory(), cosines.memory(), sines.memory()];
        arguments.extend(device.cache(cache.each));
        arguments.push(heads.argument());
        let shape = ([rows.len() + 2, 1, 1], constant("ROPE_THREADS"));
        launch(&format!("rope_and_write_{}", T::NAME), shape, order, &arguments).unwrap();
        let (keys, values) = (wide(device.keys.numbers()), wide(device.values.numbers()));
        [all.numbers().to_vec(), keys, values].concat()
    };
    let got = in_both_orders(run);
    let angles = Angles { cos: &cos, sin: &sin };
    let mut want = qkv.clone();
    for (row, want) in rows.iter().zip(want.chunks_mut(width)) {
        let mut turned = vec![0.0; dim];
        for (head, numbers) in want.chunks_mut(dim).enumerate() {
            angles.turn(row.1, numbers, &mut turned);
            if head < queries {
                numbers.copy_from_slice(&turned);
            } else if head < queries + keys {
                let at = cache.place(*row, head - queries);
                cache.keys[at..at + dim].copy_from_slice(&narrow(&turned));
            } else {
                let at = cache.place(*row, head - queries - keys);
                cache.values[at..at + dim].copy_from_slice(&narrow(numbers));
            }
        }
    }
    // Keys are rounded on both sides, and may be so to either side of what lies halfway.
    let rounded = want.len()..want.len() + cache.keys.len();
    let want = [want, wide(&cache.keys), wide(&cache.values)].concat();
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        let rounding = if rounded.contains(&at) { 2.0 * T::ROUNDING } else { 0.0 };
        if want.is_nan() {
            assert_eq!(got.bits(), want.bits(), "nobody writes here");
        } else {
            assert_close(*got, want.into(), 1e-6 + f64::from(want.abs()) * rounding);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn attention_is_right_in_any_company(
        seed: u64,
        heads in shape(),
        lengths in prop::array::uniform2(prop_oneof![1_usize..40, 250_usize..260, 1_usize..600]),
        size in prop::sample::select(vec![1e-5_f32, 1.0, 4.0, 100.0]),
    ) {
        if seed % 2 == 0 {
            attention_is_its_formula::<f16>(seed, heads, lengths, size);
        } else {
            attention_is_its_formula::<bf16>(seed, heads, lengths, size);
        }
    }

    #[test]
    fn rows_are_turned_and_written_where_they_belong(
        seed: u64,
        heads in shape(),
        first in 0_usize..30,
        count in 1_usize..40,
    ) {
        let mut random = Numbers(seed);
        let mut rows: Vec<Row> = (first..first + count).map(|position| (1, position)).collect();
        rows.push((0, 17));
        rope_and_write_is_right::<f16>(&mut random, heads, &rows);
        rope_and_write_is_right::<bf16>(&mut random, heads, &rows);
    }
}

#[test]
fn attention_is_right_at_the_edges_of_pages_splits_and_windows() {
    for window in [None, Some(1), Some(16), Some(256), Some(257)] {
        let heads = Heads { queries: 2, keys: 1, dim: 16, window };
        let mut random = Numbers(7);
        let mut cache = Cache::<f16>::new(&mut random, heads, 1, 520);
        cache.fill(&mut random, 0, 520, 1.0);
        let rows = [0, 15, 16, 255, 256, 271, 272, 511, 512].map(|position| (0, position));
        cache.check(&mut random, &rows, 1.0);
    }
}

/// What overflowed must not look like an answer, and spoils no row before it.
#[test]
fn a_row_that_sees_no_number_is_none_and_spoils_none_before_it() {
    let heads = Heads { queries: 2, keys: 1, dim: 16, window: None };
    for bad in [f16::INFINITY, f16::NEG_INFINITY, f16::NAN] {
        let mut random = Numbers(8);
        let mut cache = Cache::<f16>::new(&mut random, heads, 1, 300);
        cache.fill(&mut random, 0, 300, 1.0);
        cache.check(&mut random, &[(0, 279)], 1.0);
        let at = cache.place((0, 280), 0);
        cache.keys[at + 3] = bad;
        cache.check(&mut random, &[(0, 279)], 1.0);
        let qkv = random.vec(heads.width(), 1.0);
        for y in [
            cache.by_splits(&qkv, &[(0, 290)], Order::Forwards),
            cache.whole(&qkv, &[(0, 290)], Order::Forwards),
        ] {
            assert!(y.iter().all(|y| y.is_nan()), "{bad}: {y:?}");
        }
    }
}
