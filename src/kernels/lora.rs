//! Low-rank deltas: `y += scale * (x A^T) B^T` for the rows of one adapter (Hu et al., arXiv 2106.09685).
//!
//! The sites that share an input (q, k, v; gate, up) share one stacked A, so that their inputs are read once. Ranks are
//! what the adapter has, never padded to another's.

use std::{marker::PhantomData, ops::Range};

use super::{
    dense::{Bf16, F16, F32},
    numbers::{Codes, GROUP, Groups, NumberType, Numbers, Widen},
    panels::COLUMNS,
    pool::Disjoint,
    simd::{Kernel, LANES, Simd, Tier},
};

/// Vectors of a group.
const HALVES: usize = GROUP / LANES;

/// What an adapter does to the outputs of one site.
#[derive(Debug, Default)]
pub struct Delta {
    /// The low-rank part.
    pub low_rank: Option<LowRank>,
    /// `m / ||W + s B A||` for each output (`DoRA`, Liu et al., arXiv 2402.09353): multiplies base and delta.
    pub gain: Option<Vec<f32>>,
    /// Takes the place of the base's bias.
    pub bias: Option<Vec<f32>>,
}

/// The B side of a site, and where its A is in the stack.
#[derive(Debug)]
pub struct LowRank {
    /// Its first row in the stacked A.
    pub first: usize,
    /// Its rows there.
    pub rank: usize,
    /// alpha / r, or alpha / sqrt(r) with rank stabilisation.
    pub scale: f32,
    /// `B^T [panels of 32 outputs, rank, 32]`: what one task reads lies side by side.
    pub b: Numbers,
    /// `scale * lora_B.bias [outputs]`
    pub bias: Option<Vec<f32>>,
}

/// What an adapter does at the sites that share an input.
#[derive(Debug)]
pub struct Stack {
    /// `[rank, inputs padded to 32]`, the A of each site below the other.
    pub a: Numbers,
    /// Rows of `a`.
    pub rank: usize,
    /// Unpadded columns of `a`.
    pub inputs: usize,
    /// One for each site, in the order of the base's own outputs.
    pub sites: Vec<Delta>,
}

/// Length of a row of the stacked A.
pub fn padded_inputs(inputs: usize) -> usize {
    inputs.next_multiple_of(GROUP)
}

/// Where the number of row `r` and output `output` of `B^T [rank, outputs]` lies among [`LowRank::b`].
pub fn place_in_b(rank: usize, r: usize, output: usize) -> usize {
    (output / COLUMNS * rank + r) * COLUMNS + output % COLUMNS
}

/// Outputs that [`LowRank::b`] has room for.
pub fn padded_outputs(outputs: usize) -> usize {
    outputs.next_multiple_of(COLUMNS)
}

/// The rows of a step that go through one stack.
#[derive(Debug, Clone)]
pub struct StackRows<'a> {
    /// Rows of the step.
    pub rows: Range<usize>,
    /// What to add there.
    pub stack: &'a Stack,
    /// How often: 1, but in a mix of adapters.
    pub weight: f32,
}

/// `x A^T` for all rows that have a stack, row after row.
#[derive(Debug)]
pub(super) struct Shrunk {
    values: Vec<f32>,
    /// Where the values of each [`StackRows`] begin.
    starts: Vec<usize>,
}

impl Shrunk {
    /// Room for the rows of all stacks.
    pub(super) fn new(stacks: &[StackRows<'_>]) -> Self {
        let (mut starts, mut len) = (Vec::with_capacity(stacks.len()), 0);
        for stack in stacks {
            starts.push(len);
            len += stack.rows.len() * stack.stack.rank;
        }
        Self { values: vec![0.0; len], starts }
    }

    /// Its memory, to be filled by [`Stack::shrink`].
    pub(super) fn room(&mut self) -> Disjoint<'_, f32> {
        Disjoint::new(&mut self.values)
    }

    /// Where the values of some rows of the step, which `stacks[index]` covers, are.
    pub(super) fn place(
        &self,
        index: usize,
        stack: &StackRows<'_>,
        rows: &Range<usize>,
    ) -> Range<usize> {
        let at = |row: usize| self.starts[index] + (row - stack.rows.start) * stack.stack.rank;
        at(rows.start)..at(rows.end)
    }

    /// What lies at a [place](Self::place).
    pub(super) fn values(&self, place: Range<usize>) -> &[f32] {
        &self.values[place]
    }
}

impl Stack {
    /// The ranks of one of `shares` shares of about one size.
    pub(super) fn share(&self, share: usize, shares: usize) -> Range<usize> {
        let from =
            |share: usize| (self.rank.div_ceil(AT_ONCE) * share / shares * AT_ONCE).min(self.rank);
        from(share)..from(share + 1)
    }

    /// `x [rows, inputs] A^T` for ranks `ranks` into their places of `out [rows, rank]`, which begins at `place`.
    ///
    /// Each element is a sum over 16 lanes in input order, then over the lanes by [`Simd::sum`]: it depends on its row and
    /// the stack alone.
    ///
    /// # Safety
    /// No two calls for the same rows and ranks at a time, and `x` has rows of this stack's `inputs`.
    pub(super) unsafe fn shrink(
        &self,
        tier: Tier,
        x: &[f32],
        ranks: Range<usize>,
        (out, place): (&Disjoint<'_, f32>, usize),
    ) {
        let shrink = Shrink::<F32> { x, stack: self, ranks, out, place, kind: PhantomData };
        match self.a.kind() {
            NumberType::F32 => tier.run(shrink),
            NumberType::F16 => tier.run(shrink.of::<F16>()),
            NumberType::BF16 => tier.run(shrink.of::<Bf16>()),
            NumberType::Int8 => tier.run(shrink.of::<Codes>()),
        }
    }
}

/// Ranks that are summed side by side.
const AT_ONCE: usize = 4;

/// See [`Stack::shrink`].
struct Shrink<'a, D> {
    x: &'a [f32],
    stack: &'a Stack,
    ranks: Range<usize>,
    out: &'a Disjoint<'a, f32>,
    place: usize,
    kind: PhantomData<D>,
}

impl<'a> Shrink<'a, F32> {
    fn of<D>(self) -> Shrink<'a, D> {
        let Self { x, stack, ranks, out, place, .. } = self;
        Shrink { x, stack, ranks, out, place, kind: PhantomData }
    }
}

#[expect(clippy::inline_always, reason = "compiled once per tier")]
impl<D: Widen> Kernel for Shrink<'_, D> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let rows = self.x.len() / self.stack.inputs.max(1);
        let mut row = 0;
        // Numbers that are read once serve as many rows as there are registers for sums.
        while row < rows {
            if rows - row >= 4 && S::ACCUMULATORS >= 16 {
                self.tile::<S, 4>(simd, row);
                row += 4;
            } else {
                self.tile::<S, 1>(simd, row);
                row += 1;
            }
        }
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl<D: Widen> Shrink<'_, D> {
    #[inline(always)]
    fn tile<S: Simd, const R: usize>(&self, simd: S, row: usize) {
        let Stack { a, rank, inputs, .. } = self.stack;
        let groups = padded_inputs(*inputs) / GROUP;
        let xs: [(&[[f32; LANES]], [f32; LANES]); R] = std::array::from_fn(|r| {
            let (whole, rest) = self.x[(row + r) * inputs..][..*inputs].as_chunks::<LANES>();
            let mut last = [0.0; LANES];
            last[..rest.len()].copy_from_slice(rest);
            (whole, last)
        });
        for first in self.ranks.clone().step_by(AT_ONCE) {
            let mut acc = [[simd.splat(0.0); AT_ONCE]; R];
            // The last rows of an odd rank are repeated; their sums are not kept.
            let at = [0, 1, 2, 3].map(|at| (rank - 1).min(first + at) * groups);
            // Not by closures: where one is not inlined, it is compiled without the tier's instructions, and the loop asks
            // each row for its length.
            let rows: [Groups<'_>; AT_ONCE] = [
                a.groups::<D>(at[0], groups),
                a.groups::<D>(at[1], groups),
                a.groups::<D>(at[2], groups),
                a.groups::<D>(at[3], groups),
            ];
            for half in 0..groups * HALVES {
                let a = [
                    D::widen(simd, rows[0], half),
                    D::widen(simd, rows[1], half),
                    D::widen(simd, rows[2], half),
                    D::widen(simd, rows[3], half),
                ];
                for r in 0..R {
                    // Beyond the last inputs there may be a half of zeros in A: whatever it is multiplied by.
                    let (whole, last) = &xs[r];
                    let x = simd.load(whole.get(half).unwrap_or(last));
                    for at in 0..AT_ONCE {
                        acc[r][at] = simd.fma(x, a[at], acc[r][at]);
                    }
                }
            }
            for (r, acc) in acc.into_iter().enumerate() {
                let at = self.place + (row + r) * rank;
                let own = at + first..at + self.ranks.end.min(first + AT_ONCE);
                // SAFETY: ranks of rows that are this call's alone, by the promise of `Stack::shrink`.
                let out = unsafe { self.out.part(own) };
                for (out, acc) in out.iter_mut().zip(acc) {
                    *out = simd.sum(acc);
                }
            }
        }
    }
}

impl LowRank {
    /// The part of B for the 32 outputs from `column` on: a group for each rank.
    #[expect(clippy::inline_always, reason = "part of a kernel")]
    #[inline(always)]
    fn panel<D: Widen>(&self, column: usize) -> Groups<'_> {
        const { assert!(COLUMNS == GROUP) };
        self.b.groups::<D>(column / COLUMNS * self.rank, self.rank)
    }

    /// Asks for what [`Self::expand`] will read: an adapter that few rows use is in no cache.
    pub(super) fn prefetch(&self, column: usize) {
        self.b.prefetch(column / COLUMNS * self.rank, self.rank);
    }

    /// Adds `weight * scale * (shrunk B^T)`, summed in rank order, to `y`: outputs `column` to `column + 32` of some rows,
    /// whose `shrunk` are `[rows, width]`.
    pub(super) fn expand(
        &self,
        tier: Tier,
        (shrunk, width): (&[f32], usize),
        (column, weight): (usize, f32),
        y: &mut [[f32; COLUMNS]],
    ) {
        let scale = self.scale * weight;
        let expand =
            Expand::<F32> { low_rank: self, scale, shrunk, width, column, y, kind: PhantomData };
        match self.b.kind() {
            NumberType::F32 => tier.run(expand),
            NumberType::F16 => tier.run(expand.of::<F16>()),
            NumberType::BF16 => tier.run(expand.of::<Bf16>()),
            NumberType::Int8 => tier.run(expand.of::<Codes>()),
        }
    }
}

/// See [`LowRank::expand`].
struct Expand<'a, D> {
    low_rank: &'a LowRank,
    scale: f32,
    shrunk: &'a [f32],
    width: usize,
    column: usize,
    y: &'a mut [[f32; COLUMNS]],
    kind: PhantomData<D>,
}

impl<'a> Expand<'a, F32> {
    fn of<D>(self) -> Expand<'a, D> {
        let Self { low_rank, scale, shrunk, width, column, y, .. } = self;
        Expand { low_rank, scale, shrunk, width, column, y, kind: PhantomData }
    }
}

#[expect(clippy::inline_always, reason = "compiled once per tier")]
impl<D: Widen> Kernel for Expand<'_, D> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let rows = self.y.len();
        let mut row = 0;
        while row < rows {
            if rows - row >= 8 && S::ACCUMULATORS >= 16 {
                self.tile::<S, 8>(simd, row);
                row += 8;
            } else if rows - row >= 2 {
                self.tile::<S, 2>(simd, row);
                row += 2;
            } else {
                self.tile::<S, 1>(simd, row);
                row += 1;
            }
        }
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl<D: Widen> Expand<'_, D> {
    #[expect(clippy::needless_range_loop, reason = "a rank of B goes with that of each row")]
    #[inline(always)]
    fn tile<S: Simd, const R: usize>(&mut self, simd: S, row: usize) {
        let LowRank { first, rank, .. } = self.low_rank;
        let panel = self.low_rank.panel::<D>(self.column);
        let shrunk: [&[f32]; R] =
            std::array::from_fn(|r| &self.shrunk[(row + r) * self.width + first..][..*rank]);
        let mut acc = [[simd.splat(0.0); 2]; R];
        for at in 0..*rank {
            let b = [D::widen(simd, panel, at * HALVES), D::widen(simd, panel, at * HALVES + 1)];
            for r in 0..R {
                let h = simd.splat(shrunk[r][at]);
                acc[r] = [simd.fma(h, b[0], acc[r][0]), simd.fma(h, b[1], acc[r][1])];
            }
        }
        let scale = simd.splat(self.scale);
        for (y, acc) in self.y[row..row + R].iter_mut().zip(acc) {
            for (y, acc) in y.as_chunks_mut::<LANES>().0.iter_mut().zip(acc) {
                simd.store(simd.fma(acc, scale, simd.load(y)), y);
            }
        }
    }
}
