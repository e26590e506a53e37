//! Low-rank deltas: `y += scale * (x A^T) B^T` for the rows of one adapter (Hu et al., arXiv 2106.09685).
//!
//! The sites that share an input (q, k, v; gate, up) share one stacked A, so that their inputs are read once. Ranks are
//! what the adapter has, never padded to another's.

use std::{io, marker::PhantomData, ops::Range, sync::Arc};

use half::{bf16, f16};
use memmap2::{MmapMut, MmapRaw};

use super::{
    dense::{Bf16, Dense, F16, F32},
    panels::COLUMNS,
    pool::Disjoint,
    simd::{Kernel, LANES, Simd, Tier, prefetch},
};

/// The type of [`Numbers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say all there is")]
pub enum NumberType {
    F32,
    F16,
    BF16,
}

impl NumberType {
    /// Bytes of one number.
    pub fn width(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

/// The memory of one adapter: pages of its own, which go back to the system with it.
///
/// An adapter is hundreds of small matrices. Out of a common heap, a cache that loads and evicts them would leave holes,
/// and the process would be larger than the cache's budget says.
#[derive(Debug)]
pub struct Slab {
    pages: Arc<MmapRaw>,
    bytes: usize,
    used: usize,
}

impl Slab {
    /// Room for [`Slab::bytes_of`] all numbers that will be taken; an error where the system has no memory for them.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let pages = MmapMut::map_anon(bytes.max(1))?;
        Ok(Self { pages: Arc::new(pages.into()), bytes, used: 0 })
    }

    /// Bytes that so many numbers take: whole cache lines.
    pub fn bytes_of(kind: NumberType, len: usize) -> usize {
        (len * kind.width()).next_multiple_of(LINE)
    }

    /// So many zeros.
    ///
    /// # Panics
    /// Where they do not fit.
    pub fn zeros(&mut self, kind: NumberType, len: usize) -> Numbers {
        let bytes = Self::bytes_of(kind, len);
        assert!(
            bytes <= self.bytes - self.used,
            "{bytes} more than {} of {}",
            self.used,
            self.bytes
        );
        // SAFETY: the map is at least `bytes` long, and the part ends within it by the assertion.
        let start = unsafe { self.pages.as_mut_ptr().add(self.used) };
        self.used += bytes;
        Numbers { kind, start, len, pages: Arc::clone(&self.pages) }
    }
}

/// Cache lines, at which numbers begin.
const LINE: usize = 64;

/// Numbers in the type they were trained in, widened when they are used.
pub struct Numbers {
    kind: NumberType,
    /// The first of `len` numbers, at a multiple of 64.
    start: *mut u8,
    len: usize,
    /// Keeps the memory.
    #[expect(dead_code, reason = "it is there to be dropped")]
    pages: Arc<MmapRaw>,
}

// SAFETY: a `Numbers` is the only one that has its part of the pages, as a `Box` would be; the pages themselves are only
// unmapped, by whoever drops the last part.
unsafe impl Send for Numbers {}
// SAFETY: as above; writing needs `&mut`.
unsafe impl Sync for Numbers {}

impl Numbers {
    /// How many.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        Slab::bytes_of(self.kind, self.len)
    }

    #[inline]
    fn floats(&self) -> &[f32] {
        assert!(self.kind == NumberType::F32, "callers look at the kind");
        // SAFETY: `len` numbers of this width lie from `start` on, initialised to zero, and are borrowed as `self` is.
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.len) }
    }

    #[inline]
    fn halves(&self) -> &[u16] {
        assert!(self.kind != NumberType::F32, "callers look at the kind");
        // SAFETY: as in `floats`.
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.len) }
    }

    /// The number at `index`, widened.
    pub fn get(&self, index: usize) -> f32 {
        match self.kind {
            NumberType::F32 => self.floats()[index],
            NumberType::F16 => f16::from_bits(self.halves()[index]).to_f32(),
            NumberType::BF16 => bf16::from_bits(self.halves()[index]).to_f32(),
        }
    }

    /// Rounds `value` into the number at `index`; exact where it came from this type.
    ///
    /// # Panics
    /// Where there is no such number.
    #[expect(clippy::cast_ptr_alignment, reason = "parts begin at multiples of 64")]
    pub fn set(&mut self, index: usize, value: f32) {
        assert!(index < self.len, "number {index} of {}", self.len);
        // SAFETY: within the part by the assertion, and borrowed mutably with `self`.
        unsafe {
            match self.kind {
                NumberType::F32 => self.start.cast::<f32>().add(index).write(value),
                NumberType::F16 => {
                    self.start.cast::<u16>().add(index).write(f16::from_f32(value).to_bits());
                }
                NumberType::BF16 => {
                    self.start.cast::<u16>().add(index).write(bf16::from_f32(value).to_bits());
                }
            }
        }
    }

    /// All bytes, in the machine's order.
    fn raw(&self) -> &[u8] {
        // SAFETY: the numbers lie from `start` on, initialised to zero, and are borrowed as `self` is.
        unsafe { std::slice::from_raw_parts(self.start, self.len * self.kind.width()) }
    }
}

impl std::fmt::Debug for Numbers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}[{}]", self.kind, self.len)
    }
}

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
    /// `[rank, inputs padded to 16]`, the A of each site below the other.
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
    inputs.next_multiple_of(LANES)
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

    /// Its memory, to be filled by [`StackRows::shrink`].
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
    /// `x [rows, inputs] A^T` into `out [rows, rank]`.
    ///
    /// Each element is a sum over 16 lanes in input order, then over the lanes by [`Simd::sum`]: it depends on its row and
    /// the stack alone.
    pub(super) fn shrink(&self, tier: Tier, x: &[f32], out: &mut [f32]) {
        let shrink = Shrink::<F32> { x, stack: self, out, kind: PhantomData };
        match self.a.kind {
            NumberType::F32 => tier.run(shrink),
            NumberType::F16 => tier.run(shrink.of::<F16>()),
            NumberType::BF16 => tier.run(shrink.of::<Bf16>()),
        }
    }
}

/// See [`Stack::shrink`].
struct Shrink<'a, D> {
    x: &'a [f32],
    stack: &'a Stack,
    out: &'a mut [f32],
    kind: PhantomData<D>,
}

impl<'a> Shrink<'a, F32> {
    fn of<D>(self) -> Shrink<'a, D> {
        Shrink { x: self.x, stack: self.stack, out: self.out, kind: PhantomData }
    }
}

#[expect(clippy::inline_always, reason = "compiled once per tier")]
impl<D: Dense> Kernel for Shrink<'_, D> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
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
impl<D: Dense> Shrink<'_, D> {
    #[inline(always)]
    fn tile<S: Simd, const R: usize>(&mut self, simd: S, row: usize) {
        const AT_ONCE: usize = 4;
        let Stack { a, rank, inputs, .. } = self.stack;
        let stride = padded_inputs(*inputs) * D::WIDTH;
        let xs: [(&[[f32; LANES]], [f32; LANES]); R] = std::array::from_fn(|r| {
            let (whole, rest) = self.x[(row + r) * inputs..][..*inputs].as_chunks::<LANES>();
            let mut last = [0.0; LANES];
            last[..rest.len()].copy_from_slice(rest);
            (whole, last)
        });
        for first in (0..*rank).step_by(AT_ONCE) {
            let mut acc = [[simd.splat(0.0); AT_ONCE]; R];
            // The last rows of an odd rank are repeated; their sums are not kept.
            let rows: [&[u8]; AT_ONCE] =
                std::array::from_fn(|at| &a.raw()[(rank - 1).min(first + at) * stride..][..stride]);
            for block in 0..stride / (LANES * D::WIDTH) {
                let part = block * LANES * D::WIDTH..(block + 1) * LANES * D::WIDTH;
                let a = [0, 1, 2, 3].map(|at| D::widen(simd, &rows[at][part.clone()]));
                for r in 0..R {
                    let (whole, last) = &xs[r];
                    let x = simd.load(whole.get(block).unwrap_or(last));
                    for at in 0..AT_ONCE {
                        acc[r][at] = simd.fma(x, a[at], acc[r][at]);
                    }
                }
            }
            for (r, acc) in acc.into_iter().enumerate() {
                let out = &mut self.out[(row + r) * rank..(row + r + 1) * rank];
                for (out, acc) in out[first..].iter_mut().zip(acc) {
                    *out = simd.sum(acc);
                }
            }
        }
    }
}

impl LowRank {
    /// The part of B for the 32 outputs from `column` on.
    fn panel(&self, column: usize) -> &[u8] {
        let bytes = self.rank * COLUMNS * self.b.kind.width();
        &self.b.raw()[column / COLUMNS * bytes..][..bytes]
    }

    /// Asks for what [`Self::expand`] will read: an adapter that few rows use is in no cache.
    pub(super) fn prefetch(&self, column: usize) {
        prefetch(self.panel(column));
    }

    /// Adds `scale * (shrunk B^T)`, summed in rank order, to `y`: outputs `column` to `column + 32` of some rows, whose
    /// `shrunk` are `[rows, width]`.
    pub(super) fn expand(
        &self,
        tier: Tier,
        (shrunk, width): (&[f32], usize),
        column: usize,
        y: &mut [[f32; COLUMNS]],
    ) {
        let expand = Expand::<F32> { low_rank: self, shrunk, width, column, y, kind: PhantomData };
        match self.b.kind {
            NumberType::F32 => tier.run(expand),
            NumberType::F16 => tier.run(expand.of::<F16>()),
            NumberType::BF16 => tier.run(expand.of::<Bf16>()),
        }
    }
}

/// See [`LowRank::expand`].
struct Expand<'a, D> {
    low_rank: &'a LowRank,
    shrunk: &'a [f32],
    width: usize,
    column: usize,
    y: &'a mut [[f32; COLUMNS]],
    kind: PhantomData<D>,
}

impl<'a> Expand<'a, F32> {
    fn of<D>(self) -> Expand<'a, D> {
        let Self { low_rank, shrunk, width, column, y, .. } = self;
        Expand { low_rank, shrunk, width, column, y, kind: PhantomData }
    }
}

#[expect(clippy::inline_always, reason = "compiled once per tier")]
impl<D: Dense> Kernel for Expand<'_, D> {
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
impl<D: Dense> Expand<'_, D> {
    #[inline(always)]
    fn tile<S: Simd, const R: usize>(&mut self, simd: S, row: usize) {
        let LowRank { first, rank, scale, .. } = self.low_rank;
        let panel = COLUMNS * D::WIDTH;
        let shrunk: [&[f32]; R] =
            std::array::from_fn(|r| &self.shrunk[(row + r) * self.width + first..][..*rank]);
        let mut acc = [[simd.splat(0.0); 2]; R];
        for (at, columns) in self.low_rank.panel(self.column).chunks_exact(panel).enumerate() {
            let (left, right) = columns.split_at(LANES * D::WIDTH);
            let b = [D::widen(simd, left), D::widen(simd, right)];
            for r in 0..R {
                let h = simd.splat(shrunk[r][at]);
                acc[r] = [simd.fma(h, b[0], acc[r][0]), simd.fma(h, b[1], acc[r][1])];
            }
        }
        let scale = simd.splat(*scale);
        for (y, acc) in self.y[row..row + R].iter_mut().zip(acc) {
            for (y, acc) in y.as_chunks_mut::<LANES>().0.iter_mut().zip(acc) {
                simd.store(simd.fma(acc, scale, simd.load(y)), y);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slab_larger_than_all_memory_is_an_error() {
        let refused = Slab::new(1 << 60).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::OutOfMemory, "{refused}");
    }

    #[test]
    fn numbers_of_one_slab_do_not_touch() {
        let parts = [(NumberType::F32, 3), (NumberType::BF16, 5), (NumberType::F16, 40)];
        let mut slab = Slab::new(parts.iter().map(|(kind, len)| Slab::bytes_of(*kind, *len)).sum());
        let slab = slab.as_mut().unwrap();
        let mut parts = parts.map(|(kind, len)| slab.zeros(kind, len));
        for (value, part) in [1.0, 2.0, 3.0].into_iter().zip(&mut parts) {
            (0..part.len()).for_each(|at| part.set(at, value));
        }
        for (value, part) in [1.0_f32, 2.0, 3.0].into_iter().zip(&parts) {
            assert!((0..part.len()).all(|at| part.get(at).to_bits() == value.to_bits()));
        }
    }
}
