//! Low-rank deltas: `y += scale * (x A^T) B^T` for the rows of one adapter (Hu et al., arXiv 2106.09685).
//!
//! The sites that share an input (q, k, v; gate, up) share one stacked A, so that their inputs are read once. Ranks are
//! what the adapter has, never padded to another's.

use std::{io, sync::Arc};

use half::{bf16, f16};
use memmap2::{MmapMut, MmapRaw};

use super::{
    panels::COLUMNS,
    pool::{Disjoint, Pool},
    simd::{Kernel, LANES, Simd, Tier},
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

    #[inline(always)]
    fn vector<S: Simd>(&self, simd: S, at: usize) -> S::F {
        const CUT: &str = "rows are padded to whole vectors";
        match self.kind {
            NumberType::F32 => simd.load(self.floats()[at..at + LANES].try_into().expect(CUT)),
            NumberType::F16 => simd.load_f16(self.halves()[at..at + LANES].try_into().expect(CUT)),
            NumberType::BF16 => {
                simd.load_bf16(self.halves()[at..at + LANES].try_into().expect(CUT))
            }
        }
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
    /// `B^T [rank, outputs padded to 32]`
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

/// Length of a row of `B^T`.
pub fn padded_outputs(outputs: usize) -> usize {
    outputs.next_multiple_of(COLUMNS)
}

/// The rows of a step that go through one stack.
#[derive(Debug, Clone)]
pub struct StackRows<'a> {
    /// Rows of the step.
    pub rows: std::ops::Range<usize>,
    /// What to add there.
    pub stack: &'a Stack,
}

/// `x A^T` for all rows that have a stack, row after row.
#[derive(Debug)]
pub struct Shrunk {
    values: Vec<f32>,
    /// Where the values of each [`StackRows`] begin.
    starts: Vec<usize>,
}

impl Shrunk {
    /// `x [rows, inputs]` times each stack's A.
    ///
    /// Each element is a sum over 16 lanes in input order, then over the lanes by [`Simd::sum`]: it depends on its row and the stack alone.
    pub fn new(tier: Tier, pool: &Pool, x: &[f32], stacks: &[StackRows<'_>]) -> Self {
        let mut starts = Vec::with_capacity(stacks.len());
        let mut tasks = Vec::new();
        let mut len = 0;
        for (index, StackRows { rows, stack }) in stacks.iter().enumerate() {
            starts.push(len);
            tasks.extend(rows.clone().map(|row| (index, row)));
            len += rows.len() * stack.rank;
        }
        let mut values = vec![0.0; len];
        let out = Disjoint::new(&mut values);
        pool.run(tasks.len(), |task| {
            let (index, row) = tasks[task];
            let StackRows { rows, stack } = &stacks[index];
            let at = starts[index] + (row - rows.start) * stack.rank;
            // SAFETY: each row of each stack is one task with a part of its own.
            let out = unsafe { out.part(at..at + stack.rank) };
            let x = &x[row * stack.inputs..(row + 1) * stack.inputs];
            tier.run(Shrink { x, stack, out });
        });
        Self { values, starts }
    }

    /// The values of row `row` of the step, which `stacks[index]` covers.
    pub fn row(&self, index: usize, stack: &StackRows<'_>, row: usize) -> &[f32] {
        let at = self.starts[index] + (row - stack.rows.start) * stack.stack.rank;
        &self.values[at..at + stack.stack.rank]
    }
}

struct Shrink<'a> {
    x: &'a [f32],
    stack: &'a Stack,
    out: &'a mut [f32],
}

impl Kernel for Shrink<'_> {
    type Output = ();

    #[expect(clippy::inline_always, reason = "compiled once per tier")]
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, stack, out } = self;
        let stride = padded_inputs(stack.inputs);
        let (whole, rest) = x.as_chunks::<LANES>();
        let mut last = [0.0; LANES];
        last[..rest.len()].copy_from_slice(rest);
        for (four, out) in out.chunks_mut(4).enumerate() {
            let mut acc = [simd.splat(0.0); 4];
            // The last four rows of an odd rank repeat one; their sums are not kept.
            let rows = [0, 1, 2, 3].map(|r| (four * 4 + r.min(out.len() - 1)) * stride);
            for block in 0..stride / LANES {
                let x = simd.load(whole.get(block).unwrap_or(&last));
                for r in 0..4 {
                    let a = stack.a.vector(simd, rows[r] + block * LANES);
                    acc[r] = simd.fma(x, a, acc[r]);
                }
            }
            for (out, acc) in out.iter_mut().zip(acc) {
                *out = simd.sum(acc);
            }
        }
    }
}

impl LowRank {
    /// `(shrunk B^T)` for 32 outputs from `column` on, in rank order, times the scale, added to `y`.
    #[expect(clippy::inline_always, reason = "part of a kernel")]
    #[inline(always)]
    pub(super) fn expand<S: Simd>(
        &self,
        simd: S,
        shrunk: &[f32],
        column: usize,
        y: [S::F; 2],
    ) -> [S::F; 2] {
        let stride = self.b.len() / self.rank;
        let mut acc = [simd.splat(0.0); 2];
        for (r, h) in shrunk[self.first..self.first + self.rank].iter().enumerate() {
            let h = simd.splat(*h);
            let at = r * stride + column;
            acc[0] = simd.fma(h, self.b.vector(simd, at), acc[0]);
            acc[1] = simd.fma(h, self.b.vector(simd, at + LANES), acc[1]);
        }
        let scale = simd.splat(self.scale);
        [simd.fma(acc[0], scale, y[0]), simd.fma(acc[1], scale, y[1])]
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
