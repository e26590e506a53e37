//! Lengths of the rows of a changed weight, by which `DoRA` divides (Liu et al., arXiv 2402.09353).
//!
//! They are needed once for each load of an adapter. The changed weight is put together 32 outputs by 256 inputs at a time,
//! which takes as many multiplications as the adapter's own pass over the weight and keeps nothing.

use super::{
    panels::{BLOCK, COLUMNS, Panels},
    simd::{Kernel, LANES, Simd, Tier},
};

/// Inputs that are computed side by side.
const INPUTS: usize = 4;

/// `scale * B A`, to be added to a weight `[outputs, inputs]`.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// At least 1.
    pub rank: usize,
    /// alpha / r, or alpha / sqrt(r) with rank stabilisation.
    pub scale: f32,
    /// `[rank, inputs]`
    pub a: &'a [f32],
    /// `[outputs, rank]`
    pub b: &'a [f32],
}

impl Change<'_> {
    /// `||W_i + scale (B A)_i||^2` for each output `i` of `weights`, `[outputs]`.
    ///
    /// Summed in `f32` over up to 256 inputs and in `f64` over those sums.
    ///
    /// # Panics
    /// Where the shapes do not fit.
    pub fn lengths_squared(&self, tier: Tier, weights: &Panels) -> Vec<f64> {
        let mut lengths = vec![0.0; weights.outputs().next_multiple_of(COLUMNS)];
        self.visit(tier, weights, |panel, squares| {
            let lengths = &mut lengths[panel * COLUMNS..(panel + 1) * COLUMNS];
            for (length, square) in lengths.iter_mut().zip(squares.of_outputs) {
                *length += f64::from(square);
            }
        });
        lengths.truncate(weights.outputs());
        lengths
    }

    /// The same for each input: for a weight that is stored as its transpose, as the embedding's is, `[inputs]`.
    ///
    /// # Panics
    /// Where the shapes do not fit.
    pub fn lengths_squared_of_inputs(&self, tier: Tier, weights: &Panels) -> Vec<f64> {
        let mut lengths = vec![0.0; weights.inputs()];
        self.visit(tier, weights, |_, squares| {
            let lengths = lengths[squares.first..].iter_mut();
            for (length, square) in lengths.zip(squares.of_inputs) {
                *length += f64::from(*square);
            }
        });
        lengths
    }

    /// Calls `sink` with each panel's number and the squares of each of its blocks.
    fn visit(&self, tier: Tier, weights: &Panels, mut sink: impl FnMut(usize, Squares<'_>)) {
        let (rank, inputs) = (self.rank, weights.inputs());
        assert_eq!(self.a.len(), rank * inputs, "A is [rank, inputs]");
        assert_eq!(self.b.len(), weights.outputs() * rank, "B is [outputs, rank]");
        // `scale * A^T`, with rows of zeros that fill the last few inputs up.
        let mut a = vec![0.0; inputs.next_multiple_of(INPUTS) * rank];
        for (at, value) in self.a.iter().enumerate() {
            a[at % inputs * rank + at / inputs] = self.scale * value;
        }
        let mut widened = vec![[0.0; COLUMNS]; BLOCK];
        let mut b = vec![[0.0; COLUMNS]; rank];
        for panel in 0..weights.count() {
            b.fill([0.0; COLUMNS]);
            let outputs = self.b.chunks_exact(rank).skip(panel * COLUMNS).take(COLUMNS);
            for (column, output) in outputs.enumerate() {
                b.iter_mut().zip(output).for_each(|(b, value)| b[column] = *value);
            }
            for first in (0..inputs).step_by(BLOCK) {
                let end = inputs.min(first + BLOCK);
                let mut of_inputs = [0.0; BLOCK];
                let of_outputs = tier.run(Block {
                    weights,
                    panel,
                    inputs: first..end,
                    a: &a[first * rank..end.next_multiple_of(INPUTS) * rank],
                    b: &b,
                    widened: &mut widened,
                    of_inputs: &mut of_inputs,
                });
                sink(panel, Squares { first, of_outputs, of_inputs: &of_inputs[..end - first] });
            }
        }
    }
}

/// Sums of the squares of a block.
struct Squares<'a> {
    /// Its first input.
    first: usize,
    /// Over the block's inputs.
    of_outputs: [f32; COLUMNS],
    /// Over the panel's outputs.
    of_inputs: &'a [f32],
}

/// Some inputs of one panel.
struct Block<'a> {
    weights: &'a Panels,
    panel: usize,
    /// From a multiple of [`BLOCK`] on.
    inputs: std::ops::Range<usize>,
    /// `scale * A^T [inputs padded to 4, rank]`
    a: &'a [f32],
    /// `B^T [rank, 32]`
    b: &'a [[f32; COLUMNS]],
    widened: &'a mut [[f32; COLUMNS]],
    of_inputs: &'a mut [f32; BLOCK],
}

impl Kernel for Block<'_> {
    type Output = [f32; COLUMNS];

    #[expect(clippy::inline_always, reason = "compiled once per tier")]
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> [f32; COLUMNS] {
        let Self { weights, panel, inputs, a, b, widened, of_inputs } = self;
        let rank = b.len();
        let padded = inputs.len().next_multiple_of(INPUTS);
        widened[inputs.len()..padded].fill([0.0; COLUMNS]);
        weights.widen(simd, panel, inputs, widened);
        let load = |row: &[f32; COLUMNS]| {
            let [left, right] = row.as_chunks::<LANES>().0 else { unreachable!("two halves") };
            [simd.load(left), simd.load(right)]
        };
        let mut sums = [simd.splat(0.0); 2];
        let rows = widened[..padded].as_chunks::<INPUTS>().0.iter();
        let of_inputs = of_inputs.as_chunks_mut::<INPUTS>().0.iter_mut();
        for ((rows, a), of_inputs) in rows.zip(a.chunks_exact(INPUTS * rank)).zip(of_inputs) {
            let mut changed = [load(&rows[0]), load(&rows[1]), load(&rows[2]), load(&rows[3])];
            for (r, b) in b.iter().enumerate() {
                let b = load(b);
                for (input, changed) in changed.iter_mut().enumerate() {
                    let a = simd.splat(a[input * rank + r]);
                    *changed = [simd.fma(a, b[0], changed[0]), simd.fma(a, b[1], changed[1])];
                }
            }
            for (changed, of_input) in changed.iter().zip(of_inputs) {
                let squares = [simd.mul(changed[0], changed[0]), simd.mul(changed[1], changed[1])];
                sums = [simd.add(sums[0], squares[0]), simd.add(sums[1], squares[1])];
                *of_input = simd.sum(simd.add(squares[0], squares[1]));
            }
        }
        let mut of_outputs = [0.0; COLUMNS];
        let [left, right] = of_outputs.as_chunks_mut::<LANES>().0 else {
            unreachable!("two halves")
        };
        simd.store(sums[0], left);
        simd.store(sums[1], right);
        of_outputs
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::panels::Encoding, *};

    /// The plain reference in `f64`: the whole changed weight, row by row, each number with what `f32` may make of it.
    fn changed(weights: &Panels, change: &Change<'_>) -> Vec<Vec<(f64, f64)>> {
        let inputs = weights.inputs();
        let value = |output: usize, input: usize, w: f32| {
            let scale = f64::from(change.scale);
            let terms = (0..change.rank).map(|r| {
                let b = f64::from(change.b[output * change.rank + r]);
                scale * b * f64::from(change.a[r * inputs + input])
            });
            let all = terms.chain([f64::from(w)]);
            let (sum, size) = all.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
            (sum, size * (change.rank + 2) as f64 * f64::from(f32::EPSILON))
        };
        let row = |output: usize| {
            let mut row = vec![0.0; inputs];
            weights.row(output, &mut row);
            row.iter().enumerate().map(|(input, w)| value(output, input, *w)).collect()
        };
        (0..weights.outputs()).map(row).collect()
    }

    /// The sum of squares, and how far rounding may lead away from it: of each number, of its square, and of the sum of up to
    /// [`BLOCK`] squares, whose every step may be off by half an epsilon of what it holds.
    fn squares(values: impl Iterator<Item = (f64, f64)>) -> (f64, f64) {
        let step = f64::from(f32::EPSILON) / 2.0;
        let summed = (BLOCK + 1) as f64 * step / (1.0 - (BLOCK + 1) as f64 * step);
        let terms = values.map(|(x, error)| {
            let (square, error) = (x * x, (2.0 * x.abs() + error) * error);
            (square, error + (square + error) * summed)
        });
        terms.fold((0.0, 1e-6), |(sum, bound), (x, error)| (sum + x, bound + error))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn lengths_are_those_of_the_changed_weight(
            (outputs, blocks, extra) in (1_usize..70, 0_usize..10, 0_usize..32),
            rank in 1_usize..20,
            quantized: bool,
            seed: u64,
        ) {
            let mut state = seed;
            let mut unit = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / (1 << 23) as f32 - 1.0
            };
            let (encoding, inputs) = if quantized {
                (Encoding::Q8_0, (blocks + 1) * 32)
            } else {
                (Encoding::F32, blocks * 32 + extra + 1)
            };
            let mut bytes = Vec::new();
            for _ in 0..outputs {
                if quantized {
                    for _ in 0..=blocks {
                        bytes.extend(half::f16::from_f32(unit()).to_le_bytes());
                        bytes.extend((0..32).map(|_| unit().to_le_bytes()[1]));
                    }
                } else {
                    bytes.extend((0..inputs).flat_map(|_| unit().to_le_bytes()));
                }
            }
            let weights = Panels::pack(encoding, (outputs, inputs), &bytes, |row| row).unwrap();
            let a: Vec<f32> = (0..rank * inputs).map(|_| unit()).collect();
            let b: Vec<f32> = (0..outputs * rank).map(|_| unit()).collect();
            let change = Change { rank, scale: 1.5, a: &a, b: &b };
            let whole = changed(&weights, &change);
            let rows = whole.iter().map(|row| squares(row.iter().copied()));
            let columns = (0..inputs).map(|i| squares(whole.iter().map(|row| row[i])));
            let (rows, columns): (Vec<_>, Vec<_>) = (rows.collect(), columns.collect());
            for tier in Tier::available() {
                let got = [
                    (change.lengths_squared(tier, &weights), &rows),
                    (change.lengths_squared_of_inputs(tier, &weights), &columns),
                ];
                for (got, want) in got {
                    prop_assert_eq!(got.len(), want.len());
                    for (got, (want, bound)) in got.iter().zip(want) {
                        prop_assert!((got - want).abs() <= *bound, "{} is not {} on {}", got, want, tier);
                    }
                }
            }
        }
    }
}
