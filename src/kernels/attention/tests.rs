use candle_core::{Device, Tensor};
use proptest::prelude::*;

use super::*;

/// The plain reference in `f64`: `qkv` are all rows of one sequence from position 0 on.
fn reference(heads: Heads, qkv: &[Vec<f32>], position: usize) -> Vec<f64> {
    let first = (position + 1).saturating_sub(heads.window.unwrap_or(usize::MAX));
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let part = |row: &[f32], head: usize| row[head * heads.dim..(head + 1) * heads.dim].to_vec();
    let mut out = Vec::new();
    for query in 0..heads.queries {
        let key = query / (heads.queries / heads.keys);
        let q = part(&qkv[position], query);
        let rows = &qkv[first..=position];
        let scores: Vec<f64> = rows
            .iter()
            .map(|row| dot(&q, &part(row, heads.queries + key)) / (heads.dim as f64).sqrt())
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
        let total: f64 = weights.iter().sum();
        for d in 0..heads.dim {
            let value = |row: &Vec<f32>| f64::from(part(row, heads.queries + heads.keys + key)[d]);
            out.push(rows.iter().zip(&weights).map(|(r, w)| value(r) * w).sum::<f64>() / total);
        }
    }
    out
}

/// A row as a cache keeps it: in codes, groups of keys and of values are what rounding makes of them.
fn kept(heads: Heads, kind: KvType, row: &[f32]) -> Vec<f32> {
    let mut row = row.to_vec();
    if kind == KvType::Int8 {
        for head in row[heads.queries * heads.dim..].chunks_mut(heads.dim) {
            for group in head.chunks_mut(32) {
                let top = group.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
                let rounded = |x: f32| (x * (127.0 / top)).round_ties_even() * (top / 127.0);
                group.iter_mut().filter(|_| top > 0.0).for_each(|x| *x = rounded(*x));
            }
        }
    }
    row
}

/// Cosines and sines that turn nothing.
struct Still(Vec<f32>, Vec<f32>);

impl Still {
    fn new(rows: usize, heads: Heads) -> Self {
        let len = rows * (heads.dim / 2);
        Self(vec![1.0; len], vec![0.0; len])
    }

    fn angles(&self) -> Angles<'_> {
        Angles { cos: &self.0, sin: &self.1 }
    }
}

struct World {
    heads: Heads,
    pool: Pool,
    keys: Tensor,
    values: Tensor,
}

impl World {
    /// A cache of other people's leftovers, some of them not even numbers.
    fn new(heads: Heads, kind: KvType, pages: usize, threads: usize) -> Self {
        let full = |shape| match kind {
            KvType::Int8 => {
                Tensor::full(f32::NAN.to_bits() | 0x0001_7f81, shape, &Device::Cpu).unwrap()
            }
            KvType::F32 | KvType::F16 => {
                let numbers = Tensor::full(f32::NAN, shape, &Device::Cpu).unwrap();
                numbers.to_dtype(kind.elements()).unwrap()
            }
        };
        let keys = full(heads.key_shape(kind, pages));
        let values = full(heads.value_shape(kind, pages));
        Self { heads, pool: Pool::new(threads).unwrap(), keys, values }
    }

    fn step(&self, tier: Tier, rows: &[Vec<f32>], sequences: &[SequenceRows<'_>]) -> Vec<Vec<f32>> {
        let heads = self.heads;
        let x =
            Tensor::from_slice(&rows.concat(), (rows.len(), heads.width()), &Device::Cpu).unwrap();
        self.write(&x, sequences).unwrap();
        let still = Still::new(rows.len(), heads);
        let angles = still.angles();
        let op = Attention { tier, pool: &self.pool, heads, angles, sequences };
        x.apply_op3_no_bwd(&self.keys, &self.values, &op).unwrap().to_vec2().unwrap()
    }

    fn write(&self, x: &Tensor, sequences: &[SequenceRows<'_>]) -> Result<()> {
        let still = Still::new(x.dim(0).unwrap(), self.heads);
        let (pool, heads) = (&self.pool, self.heads);
        let write = |half| Write { half, pool, heads, angles: still.angles(), sequences };
        let (keys, values) = (write(Half::Keys), write(Half::Values));
        self.keys.inplace_op2(x, &keys).and(self.values.inplace_op2(x, &values))
    }
}

fn shape() -> impl Strategy<Value = Heads> {
    let dims = prop::sample::select(vec![4_usize, 6, 16, 24, 40, 64, 80, 100]);
    let window = prop::option::of(1_usize..90);
    (1_usize..3, 1_usize..5, dims, window).prop_map(|(keys, group, dim, window)| Heads {
        queries: keys * group,
        keys,
        dim,
        window,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Two sequences side by side, each cut into chunks at random: every row is the reference's, and the same bits as
    /// when its sequence is computed alone and row by row.
    #[test]
    fn any_chunking_in_any_company_gives_the_same_bits(
        heads in shape(),
        kind in prop::sample::select(vec![KvType::F32, KvType::F16, KvType::Int8]),
        seed: u64,
        lengths in (1_usize..150, 1_usize..70),
        cuts in prop::collection::vec(1_usize..60, 40),
    ) {
        let mut state = seed;
        let mut unit = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let mut sequence = |len: usize| -> Vec<Vec<f32>> {
            // Numbers that a cache of floats keeps as they are.
            let mut number = || f16::from_f32(unit() * 2.0).to_f32();
            (0..len).map(|_| (0..heads.width()).map(|_| number()).collect()).collect()
        };
        let rows = [sequence(lengths.0), sequence(lengths.1)];
        // Pages out of order, and of both sequences mixed.
        let pages: [Vec<u32>; 2] = [(0..10).map(|i| 2 * i + 1).rev().collect(), (0..10).map(|i| 2 * i).collect()];
        let tiers = Tier::available();
        let tier = tiers[usize::try_from(seed % tiers.len() as u64).unwrap()];
        let mut cuts = cuts.into_iter().cycle();
        let together = World::new(heads, kind, 20, 2);
        let mut done = [0, 0];
        let mut got = [Vec::new(), Vec::new()];
        while done[0] < rows[0].len() || done[1] < rows[1].len() {
            let mut step = Vec::new();
            let mut sequences = Vec::new();
            for i in 0..2 {
                let end = rows[i].len().min(done[i] + cuts.next().unwrap());
                let start = step.len();
                step.extend_from_slice(&rows[i][done[i]..end]);
                if step.len() > start {
                    sequences.push(SequenceRows { rows: start..step.len(), position: done[i], pages: &pages[i] });
                }
            }
            let out = together.step(tier, &step, &sequences);
            for (sequence, i) in sequences.iter().zip(if done[0] < rows[0].len() { [0, 1] } else { [1, 1] }) {
                got[i].extend_from_slice(&out[sequence.rows.clone()]);
                done[i] += sequence.rows.len();
            }
        }
        for i in 0..2 {
            let alone = World::new(heads, kind, 20, 1);
            let kept: Vec<_> = rows[i].iter().map(|row| kept(heads, kind, row)).collect();
            for (position, row) in rows[i].iter().enumerate() {
                let sequences = [SequenceRows { rows: 0..1, position, pages: &pages[i] }];
                let tier = tiers[position % tiers.len()];
                let out = alone.step(tier, std::slice::from_ref(row), &sequences);
                prop_assert_eq!(&out[0], &got[i][position], "position {} on {}", position, tier);
                for (got, want) in out[0].iter().zip(reference(heads, &kept, position)) {
                    prop_assert!((f64::from(*got) - want).abs() < 1e-4, "{} is not {}", got, want);
                }
            }
        }
    }
}

/// Times a weight of zero, it made the rows before it no numbers either, and with them what others take for a prefix.
#[test]
fn a_row_that_is_no_number_spoils_none_before_it() {
    let kinds = [KvType::F32, KvType::Int8];
    let cases = [None, Some(3)].into_iter().flat_map(|window| kinds.map(|kind| (window, kind)));
    for ((window, kind), tier) in
        cases.flat_map(|case| Tier::available().into_iter().map(move |tier| (case, tier)))
    {
        let heads = Heads { queries: 1, keys: 1, dim: 16, window };
        let world = World::new(heads, kind, 3, 1);
        let mut rows: Vec<Vec<f32>> =
            (0_u8..40).map(|row| vec![f32::from(row) / 40.0; heads.width()]).collect();
        let sequences = [SequenceRows { rows: 0..40, position: 0, pages: &[2, 0, 1] }];
        let want = world.step(tier, &rows, &sequences);
        rows[20][2 * heads.dim..].fill(f32::INFINITY);
        rows[21].fill(f32::NAN);
        let got = world.step(tier, &rows, &sequences);
        assert_eq!(got[..20], want[..20], "{tier}");
        assert!(got[20].iter().chain(&got[21]).all(|x| !x.is_finite()), "{tier}");
        if window.is_some() {
            assert_eq!(got[24..], want[24..], "out of their window, {tier}");
        }
    }
}

/// Of codes a group is one rounding: what is none in the second group must not be lost in it.
#[test]
fn a_single_number_that_is_none_spoils_all_that_see_it() {
    let heads = Heads { queries: 1, keys: 1, dim: 40, window: None };
    for (tier, bad) in Tier::available()
        .into_iter()
        .flat_map(|tier| [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(|bad| (tier, bad)))
    {
        for kind in [KvType::F32, KvType::F16, KvType::Int8] {
            for at in [35, 40 + 35] {
                let world = World::new(heads, kind, 6, 1);
                let mut rows = vec![vec![0.5; heads.width()]; 90];
                let sequences =
                    [SequenceRows { rows: 0..90, position: 0, pages: &[2, 0, 1, 5, 4, 3] }];
                let want = world.step(tier, &rows, &sequences);
                rows[20][heads.dim + at] = bad;
                let got = world.step(tier, &rows, &sequences);
                assert_eq!(got[..20], want[..20], "{tier}, {kind:?}");
                let spoiled = |row: &Vec<f32>| row.iter().any(|x| !x.is_finite());
                assert!(got[20..].iter().all(spoiled), "{tier}, {kind:?}, {bad} at {at}");
            }
        }
    }
}

#[test]
fn codes_hold_magnitudes_at_the_ends_of_the_range() {
    let heads = Heads { queries: 1, keys: 1, dim: 16, window: None };
    for (tier, magnitude) in Tier::available()
        .into_iter()
        .flat_map(|tier| [0.0, 1e-40, 1e-36, 1e-30, 1e30, 1e38].map(|x| (tier, x)))
    {
        let world = World::new(heads, KvType::Int8, 1, 1);
        let mut row = vec![0.0; heads.width()];
        row[2 * heads.dim..].fill(magnitude);
        let sequences = [SequenceRows { rows: 0..1, position: 0, pages: &[0] }];
        let got = world.step(tier, &[row], &sequences);
        // What is too small for an inverse is nothing.
        for x in &got[0] {
            assert!(
                (x - magnitude).abs() <= magnitude * 1e-6 + 4e-37,
                "{tier}: {x} of {magnitude}"
            );
        }
    }
}

/// The exponential is clamped, so that a score which is no number would have come out as one.
#[test]
fn a_key_that_half_precision_cannot_hold_makes_no_answer() {
    let heads = Heads { queries: 1, keys: 1, dim: 16, window: None };
    for (tier, key) in
        Tier::available().into_iter().flat_map(|tier| [1e6, -1e6].map(|key| (tier, key)))
    {
        let world = World::new(heads, KvType::F16, 3, 1);
        let mut rows = vec![vec![0.5; heads.width()]; 40];
        let sequences = [SequenceRows { rows: 0..40, position: 0, pages: &[2, 0, 1] }];
        let want = world.step(tier, &rows, &sequences);
        rows[20][heads.dim] = key;
        let got = world.step(tier, &rows, &sequences);
        assert_eq!(got[..20], want[..20], "{tier}");
        let finite = got[20..].iter().flatten().filter(|x| x.is_finite()).count();
        assert_eq!(finite, 0, "{tier}, {key}");
    }
}

#[test]
fn a_step_that_does_not_fit_is_an_error_and_leaves_the_cache_usable() {
    let heads = Heads { queries: 2, keys: 1, dim: 4, window: None };
    let world = World::new(heads, KvType::F32, 2, 1);
    let rows = |width| Tensor::zeros((1, width), DType::F32, &Device::Cpu).unwrap();
    let cases = [
        (0..1, 16, &[0_u32][..], heads.width()),
        (0..2, 0, &[0], heads.width()),
        (0..1, 0, &[2], heads.width()),
        (0..1, 0, &[], heads.width()),
        (0..1, 0, &[0], heads.width() - 1),
    ];
    for (taken, position, pages, width) in cases {
        let sequences = [SequenceRows { rows: taken, position, pages }];
        let still = Still::new(1, heads);
        let angles = still.angles();
        for half in [Half::Keys, Half::Values] {
            let cache = if half == Half::Keys { &world.keys } else { &world.values };
            let (pool, sequences) = (&world.pool, &sequences);
            let write = Write { half, pool, heads, angles, sequences };
            assert!(cache.inplace_op2(&rows(width), &write).is_err(), "{sequences:?}");
        }
        let op = Attention {
            tier: Tier::best(),
            pool: &world.pool,
            heads,
            angles,
            sequences: &sequences,
        };
        let attended = rows(width).apply_op3_no_bwd(&world.keys, &world.values, &op);
        assert!(attended.is_err(), "{sequences:?}");
    }
    let two = Tensor::zeros((2, heads.width()), DType::F32, &Device::Cpu).unwrap();
    let page = |row| SequenceRows { rows: row..row + 1, position: row, pages: &[0] };
    let error = world.write(&two, &[page(0), page(1)]).unwrap_err().to_string();
    assert!(error.contains("page 0 is written for two places"), "{error}");
    let sequences = [SequenceRows { rows: 0..1, position: 0, pages: &[1] }];
    world.write(&rows(heads.width()), &sequences).unwrap();
}

#[test]
fn codes_take_little_more_than_half_of_sixteen_bits() {
    let heads = Heads { queries: 9, keys: 3, dim: 64, window: None };
    assert_eq!(heads.page_bytes(KvType::F32), 2 * heads.page_bytes(KvType::F16));
    // Two scales of four bytes for 64 codes.
    assert_eq!(heads.page_bytes(KvType::Int8), 2 * 3 * PAGE * (64 + 2 * 4));
}
