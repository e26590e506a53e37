use half::f16;
use proptest::prelude::*;

use super::*;
use crate::kernels::{
    elementwise::GainRows,
    lora::{LowRank, Stack, padded_inputs, padded_outputs, place_in_b},
    memory::Slab,
    numbers::{NumberType, Numbers},
    panels::{BadWeights, Encoding},
};

const PRECISIONS: [Precision; 3] = [Precision::Int8, Precision::Int16, Precision::Exact];

const ENCODINGS: [Encoding; 11] = [
    Encoding::F32,
    Encoding::F16,
    Encoding::BF16,
    Encoding::Q4_0,
    Encoding::Q4_1,
    Encoding::Q5_0,
    Encoding::Q5_1,
    Encoding::Q8_0,
    Encoding::Q4_K,
    Encoding::Q5_K,
    Encoding::Q6_K,
];

/// A small generator, so that a case is its seed.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// In [-1, 1).
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as u32 as f32 / (1 << 23) as f32 - 1.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.unit()).collect()
    }
}

/// Random rows of a file: any codes, scales of a sane size.
fn rows(draw: &mut Draw, encoding: Encoding, outputs: usize, inputs: usize) -> Vec<u8> {
    let (length, bytes) = encoding.block();
    let halves: &[usize] = match encoding {
        Encoding::F32 | Encoding::F16 | Encoding::BF16 => &[],
        Encoding::Q4_0 | Encoding::Q5_0 | Encoding::Q8_0 => &[0],
        Encoding::Q4_1 | Encoding::Q5_1 | Encoding::Q4_K | Encoding::Q5_K => &[0, 2],
        Encoding::Q6_K => &[208],
    };
    let mut all = Vec::new();
    for _ in 0..outputs * inputs / length {
        let mut block: Vec<u8> = (0..bytes).map(|_| draw.next().to_le_bytes()[0]).collect();
        let value = draw.unit();
        match encoding {
            Encoding::F32 => block.copy_from_slice(&value.to_le_bytes()),
            Encoding::F16 => block.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
            Encoding::BF16 => {
                block.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes());
            }
            _ => {
                for at in halves {
                    let scale = f16::from_f32(draw.unit() * 0.02);
                    block[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
                }
            }
        }
        all.extend(block);
    }
    all
}

fn projection(draw: &mut Draw, encoding: Encoding, outputs: usize, inputs: usize) -> Projection {
    let bytes = rows(draw, encoding, outputs, inputs);
    let weights = Panels::pack(encoding, (outputs, inputs), &bytes, |row| row).unwrap();
    let bias = draw.next().is_multiple_of(2).then(|| draw.floats(outputs));
    Projection { weights: Arc::new(weights), bias }
}

fn numbers(draw: &mut Draw, rows: usize, (len, padded): (usize, usize)) -> Numbers {
    let kinds = [NumberType::F32, NumberType::F16, NumberType::BF16, NumberType::Int8];
    let kind = kinds[draw.below(4)];
    let slab = Slab::new(Numbers::bytes_of(kind, rows * padded)).unwrap();
    let mut all = Numbers::zeros(&slab, kind, rows * padded).unwrap();
    for row in 0..rows {
        let mut values = draw.floats(len);
        values.resize(padded, 0.0);
        all.write(row * padded, &values);
    }
    all
}

fn stack(draw: &mut Draw, inputs: usize, outputs: &[usize]) -> Stack {
    let mut rank = 0;
    let mut sites = Vec::new();
    for outputs in outputs {
        let own = 1 + draw.below(40);
        let low_rank = draw.next().is_multiple_of(3).then_some(()).map_or_else(
            || {
                let first = rank;
                rank += own;
                // What lies beyond the outputs is computed, and not kept.
                let padded = padded_outputs(*outputs);
                let b = numbers(draw, own, (padded, padded));
                let bias = draw.next().is_multiple_of(3).then(|| draw.floats(*outputs));
                Some(LowRank { first, rank: own, scale: draw.unit(), b, bias })
            },
            |()| None,
        );
        let gain = draw.next().is_multiple_of(3).then(|| draw.floats(*outputs));
        let bias = draw.next().is_multiple_of(3).then(|| draw.floats(*outputs));
        sites.push(Delta { low_rank, gain, bias });
    }
    let a = numbers(draw, rank, (inputs, padded_inputs(inputs)));
    Stack { a, rank, inputs, sites }
}

/// Inputs as the kernels round them, by the definition: with one scale for all, and codes up to `most`.
fn rounded(x: &[f32], most: f32) -> Vec<f32> {
    let top = x.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
    let (scale, inverse) = (top / most, most / top);
    let value = |x: &f32| (x * inverse).round_ties_even() * scale;
    x.iter().map(|x| if inverse.is_finite() { value(x) } else { 0.0 }).collect()
}

/// What the base's weights are multiplied by.
fn inputs_of(x: &[f32], precision: Precision, projections: &[Projection]) -> Vec<f32> {
    if !projections[0].weights.are_codes() {
        return x.to_vec();
    }
    match precision {
        Precision::Int8 => x.chunks(32).flat_map(|x| rounded(x, 127.0)).collect(),
        Precision::Int16 => rounded(x, 32_767.0),
        Precision::Exact => x.to_vec(),
    }
}

/// A stack as it may stand in a mix.
fn sum(mut stack: Stack) -> Stack {
    for delta in &mut stack.sites {
        (delta.gain, delta.bias) = (None, None);
    }
    stack
}

/// The plain reference, in `f64`: one row, one output at a time. The base sees `inputs`, the adapter `x`.
fn reference(
    x: &[f32],
    inputs: &[f32],
    projections: &[Projection],
    stacks: &[StackRows<'_>],
) -> Vec<f64> {
    let dot = |x: &[f32], w: &dyn Fn(usize) -> f32| -> f64 {
        x.iter().enumerate().map(|(k, x)| f64::from(*x) * f64::from(w(k))).sum()
    };
    let mut y = Vec::new();
    for (site, projection) in projections.iter().enumerate() {
        for output in 0..projection.weights.outputs() {
            let mut w = vec![0.0; x.len()];
            projection.weights.row(output, &mut w);
            let mut sum = dot(inputs, &|k| w[k]);
            let mut bias = projection.bias.as_ref();
            for StackRows { stack, weight, .. } in stacks {
                let (delta, weight) = (&stack.sites[site], f64::from(*weight));
                if let Some(low) = &delta.low_rank {
                    let stride = padded_inputs(stack.inputs);
                    let added: f64 = (0..low.rank)
                        .map(|r| {
                            let h = dot(x, &|k| stack.a.get((low.first + r) * stride + k));
                            h * f64::from(low.b.get(place_in_b(low.rank, r, output)))
                        })
                        .sum();
                    sum += weight * added * f64::from(low.scale);
                    sum += weight * low.bias.as_ref().map_or(0.0, |b| f64::from(b[output]));
                }
                sum *= delta.gain.as_ref().map_or(1.0, |gain| f64::from(gain[output]));
                bias = delta.bias.as_ref().or(bias);
            }
            y.push(sum + bias.map_or(0.0, |bias| f64::from(bias[output])));
        }
    }
    y
}

/// Inputs of a row that a network should not, but could, come to.
fn strange(draw: &mut Draw, len: usize) -> Vec<f32> {
    let mut x = draw.floats(len);
    match draw.below(7) {
        0 => x.fill(0.0),
        1 => x.iter_mut().for_each(|x| *x *= 1e-40),
        2 => x.iter_mut().for_each(|x| *x *= 1e-36),
        3 => x.iter_mut().for_each(|x| *x *= 1e30),
        4 => x[draw.below(len)] = 1e5,
        5 => x.iter_mut().for_each(|x| *x = x.signum()),
        _ => x.iter_mut().step_by(2).for_each(|x| *x = -0.0),
    }
    x
}

fn some_inputs(draw: &mut Draw, encoding: Encoding) -> usize {
    match encoding.block().0 {
        1 => 1 + draw.below(100),
        32 => 32 * (1 + draw.below(9)),
        block => block * (1 + draw.below(2)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// Against the reference; and bit for bit the same on every tier, with any threads, alone and in company.
    #[test]
    fn a_row_is_its_formula_whoever_is_beside_it(
        seed: u64,
        encoding in 0_usize..11,
        // Now and then more than one task takes.
        count in prop_oneof![15 => 1_usize..40, 1 => ROW_BLOCK - 1..ROW_BLOCK + 16],
        precision in prop::sample::select(PRECISIONS.to_vec()),
    ) {
        let mut draw = Draw(seed);
        let encoding = ENCODINGS[encoding];
        let inputs = some_inputs(&mut draw, encoding);
        let outputs: Vec<usize> = (0..=draw.below(2)).map(|_| 1 + draw.below(90)).collect();
        let projections: Vec<_> =
            outputs.iter().map(|n| projection(&mut draw, encoding, *n, inputs)).collect();
        let total: usize = outputs.iter().sum();
        let stacks: Vec<_> = (0..3).map(|_| stack(&mut draw, inputs, &outputs)).collect();
        let sums: Vec<_> = (0..3).map(|_| sum(stack(&mut draw, inputs, &outputs))).collect();
        let mut ranges = Vec::new();
        let mut row = 0;
        while row < count {
            let end = count.min(row + 1 + draw.below(9));
            match draw.below(4) {
                0 => {}
                1 => for stack in &sums[draw.below(2)..] {
                    ranges.push(StackRows { rows: row..end, stack, weight: draw.floats(1)[0] });
                }
                _ => ranges.push(StackRows { rows: row..end, stack: &stacks[draw.below(3)], weight: 1.0 }),
            }
            row = end;
        }
        let x = draw.floats(count * inputs);
        let mut first: Option<Vec<f32>> = None;
        for tier in Tier::available() {
            let threads = [1, 2, 3, 8][draw.below(4)];
            let pool = Pool::new(threads).unwrap();
            let input = Input::Rows;
            let op = Linear { tier, pool: &pool, precision, input, projections: &projections, stacks: &ranges };
            let y = op.apply(&x, count, None);
            for row in 0..count {
                let x = &x[row * inputs..(row + 1) * inputs];
                let of_row = ranges.iter().filter(|range| range.rows.contains(&row));
                let own: Vec<_> = of_row.map(|r| StackRows { rows: 0..1, ..r.clone() }).collect();
                let y = &y[row * total..(row + 1) * total];
                let seen = inputs_of(x, precision, &projections);
                let want = reference(x, &seen, &projections, &own);
                for (got, want) in y.iter().zip(want) {
                    prop_assert!((f64::from(*got) - want).abs() < 2e-4 * (1.0 + want.abs()), "{got} is not {want}");
                }
                let alone = Linear { stacks: &own, ..op }.apply(x, 1, None);
                prop_assert_eq!(y, &alone);
            }
            prop_assert_eq!(&y, first.get_or_insert_with(|| y.clone()), "{}", tier);
        }
    }

    /// What is done to rows first is done before the base and all adapters alike, however many threads share it.
    #[test]
    fn rows_are_changed_before_everything_else(
        seed: u64,
        count in 1_usize..20,
        gated: bool,
        threads in 1_usize..10,
        precision in prop::sample::select(PRECISIONS.to_vec()),
    ) {
        let mut draw = Draw(seed);
        let inputs = 32 * (1 + draw.below(5));
        let outputs = [1 + draw.below(70), 1 + draw.below(70)];
        let projections = outputs.map(|n| projection(&mut draw, Encoding::Q4_1, n, inputs));
        let stacks = [0; 2].map(|_| stack(&mut draw, inputs, &outputs));
        let cut = draw.below(count + 1);
        let ranges = [(0..cut, &stacks[0]), (cut..count, &stacks[1])];
        let ranges: Vec<_> = ranges
            .into_iter()
            .filter(|(rows, _)| !rows.is_empty())
            .map(|(rows, stack)| StackRows { rows, stack, weight: 1.0 })
            .collect();
        let (gain, own) = (draw.floats(inputs), draw.floats(inputs));
        let gains = [GainRows { rows: cut..count, gain: &own }];
        let input = if gated {
            Input::Gated
        } else {
            Input::Norm(RmsNorm { gain: &gain, gains: &gains, eps: 1e-5 })
        };
        let x = draw.floats(count * input.width(inputs));
        for tier in Tier::available() {
            let (one, many) = (Pool::new(1).unwrap(), Pool::new(threads).unwrap());
            let op = Linear { tier, pool: &many, precision, input, projections: &projections, stacks: &ranges };
            let mut changed = vec![0.0; count * inputs];
            op.change(&(0..count), &x, &mut changed);
            let plain = Linear { pool: &one, input: Input::Rows, ..op };
            prop_assert_eq!(op.apply(&x, count, None), plain.apply(&changed, count, None), "{}", tier);
        }
    }

    /// Rounded or not, zeros, denormals, outliers and magnitudes near the end of the range come out as by the formula, and
    /// the same on every tier.
    #[test]
    fn strange_inputs_are_multiplied_like_others(
        seed: u64,
        encoding in 0_usize..11,
        count in 1_usize..20,
        precision in prop::sample::select(PRECISIONS.to_vec()),
    ) {
        let mut draw = Draw(seed);
        let encoding = ENCODINGS[encoding];
        let inputs = some_inputs(&mut draw, encoding);
        let outputs = 1 + draw.below(70);
        let bytes = rows(&mut draw, encoding, outputs, inputs);
        let weights = Panels::pack(encoding, (outputs, inputs), &bytes, |row| row).unwrap();
        let projections = [Projection { weights: Arc::new(weights), bias: None }];
        let x: Vec<f32> = (0..count).flat_map(|_| strange(&mut draw, inputs)).collect();
        let mut first: Option<Vec<u32>> = None;
        for tier in Tier::available() {
            let pool = Pool::new(2).unwrap();
            let input = Input::Rows;
            let op = Linear { tier, pool: &pool, precision, input, projections: &projections, stacks: &[] };
            let y = op.apply(&x, count, None);
            for (x, y) in x.chunks(inputs).zip(y.chunks(outputs)) {
                let seen = inputs_of(x, precision, &projections);
                let want = reference(x, &seen, &projections, &[]);
                let most = x.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                // What codes, scales and minima of these weights can at most add up to.
                let noise = f64::from(most) * 1e-6 * 200.0 * inputs as f64 + 1e-35;
                for (got, want) in y.iter().zip(want) {
                    prop_assert!((f64::from(*got) - want).abs() <= noise, "{got} is not {want}");
                }
            }
            let bits: Vec<u32> = y.iter().map(|y| y.to_bits()).collect();
            prop_assert_eq!(&bits, first.get_or_insert_with(|| bits.clone()), "{}", tier);
        }
    }
}

#[test]
fn an_input_that_is_no_number_gives_outputs_that_are_none() {
    let pool = Pool::new(1).unwrap();
    for encoding in ENCODINGS {
        let inputs = encoding.block().0.max(64);
        let projections = [projection(&mut Draw(7), encoding, 40, inputs)];
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![0.5; 3 * inputs];
            x[inputs + 5] = bad;
            for tier in Tier::available() {
                for precision in PRECISIONS {
                    let op = Linear {
                        tier,
                        pool: &pool,
                        precision,
                        input: Input::Rows,
                        projections: &projections,
                        stacks: &[],
                    };
                    let y = op.apply(&x, 3, None);
                    let finite = |row: usize| y[row * 40..][..40].iter().filter(|y| y.is_finite());
                    assert_eq!(
                        [0, 1, 2].map(|row| finite(row).count()),
                        [40, 0, 40],
                        "{encoding:?}"
                    );
                }
            }
        }
    }
}

/// A block of the greatest codes, whose scale is 1 or the greatest, and the value of each.
fn greatest(encoding: Encoding) -> Option<(Vec<u8>, f32)> {
    let (one, zero) = (f16::ONE.to_le_bytes(), [0, 0]);
    let ones = |len: usize| vec![0xff; len];
    Some(match encoding {
        Encoding::F32 | Encoding::F16 | Encoding::BF16 => return None,
        Encoding::Q4_0 => ([one.to_vec(), ones(16)].concat(), 7.0),
        Encoding::Q4_1 => ([one.to_vec(), zero.to_vec(), ones(16)].concat(), 15.0),
        Encoding::Q5_0 => ([one.to_vec(), ones(20)].concat(), 15.0),
        Encoding::Q5_1 => ([one.to_vec(), zero.to_vec(), ones(20)].concat(), 31.0),
        Encoding::Q8_0 => ([one.to_vec(), vec![0x80; 32]].concat(), -128.0),
        Encoding::Q4_K => ([one.to_vec(), zero.to_vec(), ones(140)].concat(), 63.0 * 15.0),
        Encoding::Q5_K => ([one.to_vec(), zero.to_vec(), ones(172)].concat(), 63.0 * 31.0),
        Encoding::Q6_K => ([ones(192), vec![1; 16], one.to_vec()].concat(), 31.0),
    })
}

#[test]
fn greatest_codes_and_inputs_do_not_overflow() {
    let pool = Pool::new(1).unwrap();
    for encoding in ENCODINGS {
        let Some((block, greatest)) = greatest(encoding) else { continue };
        let (inputs, bytes) = encoding.block();
        assert_eq!(block.len(), bytes, "{encoding:?}");
        let outputs = 33;
        let block = block.repeat(outputs);
        let weights = Panels::pack(encoding, (outputs, inputs), &block, |row| row).unwrap();
        let projections = [Projection { weights: Arc::new(weights), bias: None }];
        // A few rows, as many as a tile has, and several tiles are computed in different ways.
        for (sign, rows) in
            [1.0, -1.0].into_iter().flat_map(|s| [1, 2, 3, 4, 8, 17].map(|rows| (s, rows)))
        {
            let x = vec![sign; rows * inputs];
            for (tier, precision) in
                Tier::available().into_iter().flat_map(|tier| PRECISIONS.map(|p| (tier, p)))
            {
                let op = Linear {
                    tier,
                    pool: &pool,
                    precision,
                    input: Input::Rows,
                    projections: &projections,
                    stacks: &[],
                };
                let want = sign * greatest * inputs as f32;
                for y in op.apply(&x, rows, None) {
                    assert!(
                        (y - want).abs() <= want.abs() * 1e-5,
                        "{encoding:?}, {precision:?} on {tier}, {rows} rows: {y} is not {want}"
                    );
                }
            }
        }
    }
}

#[test]
fn rows_are_taken_in_the_order_asked_for() {
    let bytes: Vec<u8> = (0..6_u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
    let panels = Panels::pack(Encoding::F32, (3, 2), &bytes, |row| 2 - row).unwrap();
    let mut row = [0.0; 2];
    panels.row(0, &mut row);
    assert_eq!(row.map(f32::to_bits), [4.0_f32, 5.0].map(f32::to_bits));
}

#[test]
fn weights_of_another_size_are_refused() {
    let pack = |encoding, shape, len| Panels::pack(encoding, shape, &vec![0; len], |row| row);
    assert!(pack(Encoding::Q4_0, (1, 33), 18).is_err());
    assert!(pack(Encoding::Q4_K, (1, 32), 18).is_err());
    assert!(pack(Encoding::Q4_0, (2, 32), 18).is_err());
    assert!(pack(Encoding::Q4_0, (usize::MAX, 32), 18).is_err());
    assert!(pack(Encoding::Q4_0, (2, 32), 36).is_ok());
}

#[test]
fn weights_that_are_not_finite_are_refused_by_their_row() {
    let not_finite = Err(BadWeights::NotFinite { row: 1 });
    for (encoding, bad) in [
        (Encoding::F32, f32::NAN.to_le_bytes().to_vec()),
        (Encoding::F16, f16::INFINITY.to_le_bytes().to_vec()),
        (Encoding::BF16, half::bf16::NEG_INFINITY.to_le_bytes().to_vec()),
        (Encoding::Q8_0, [f16::NAN.to_le_bytes().to_vec(), vec![0; 32]].concat()),
    ] {
        let inputs = encoding.block().0;
        let rows = [vec![0; bad.len()], bad].concat();
        let packed = Panels::pack(encoding, (2, inputs), &rows, |row| row).map(|_| ());
        assert_eq!(packed, not_finite, "{encoding:?}");
    }
}

#[test]
fn four_bits_stay_four_bits() {
    let bytes = vec![0; 1536 * 576 / 32 * 20];
    let panels = Panels::pack(Encoding::Q4_1, (1536, 576), &bytes, |row| row).unwrap();
    assert_eq!(panels.bytes(), bytes.len());
}
