//! Low-rank deltas: `y += scale * (x A^T) B^T` for the rows of one adapter (Hu et al., arXiv 2106.09685).
//!
//! The sites that share an input (q, k, v; gate, up) share one stacked A, so that their inputs are read once. Ranks are
//! what the adapter has, never padded to another's.

use half::{bf16, f16};

use super::{
    panels::COLUMNS,
    pool::{Disjoint, Pool},
    simd::{Kernel, LANES, Simd, Tier},
};

/// Numbers in the type they were trained in, widened when they are used.
#[derive(Clone, PartialEq)]
#[expect(missing_docs, reason = "the names say all there is")]
pub enum Numbers {
    F32(Vec<f32>),
    F16(Vec<u16>),
    BF16(Vec<u16>),
}

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

impl Numbers {
    /// So many zeros.
    pub fn zeros(kind: NumberType, len: usize) -> Self {
        match kind {
            NumberType::F32 => Self::F32(vec![0.0; len]),
            NumberType::F16 => Self::F16(vec![0; len]),
            NumberType::BF16 => Self::BF16(vec![0; len]),
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F16(v) | Self::BF16(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Self::F32(v) => v.capacity() * 4,
            Self::F16(v) | Self::BF16(v) => v.capacity() * 2,
        }
    }

    /// The number at `index`, widened.
    pub fn get(&self, index: usize) -> f32 {
        match self {
            Self::F32(v) => v[index],
            Self::F16(v) => f16::from_bits(v[index]).to_f32(),
            Self::BF16(v) => bf16::from_bits(v[index]).to_f32(),
        }
    }

    /// Rounds `value` into the number at `index`; exact where it came from this type.
    pub fn set(&mut self, index: usize, value: f32) {
        match self {
            Self::F32(v) => v[index] = value,
            Self::F16(v) => v[index] = f16::from_f32(value).to_bits(),
            Self::BF16(v) => v[index] = bf16::from_f32(value).to_bits(),
        }
    }

    #[inline(always)]
    fn vector<S: Simd>(&self, simd: S, at: usize) -> S::F {
        const CUT: &str = "rows are padded to whole vectors";
        match self {
            Self::F32(v) => simd.load(v[at..at + LANES].try_into().expect(CUT)),
            Self::F16(v) => simd.load_f16(v[at..at + LANES].try_into().expect(CUT)),
            Self::BF16(v) => simd.load_bf16(v[at..at + LANES].try_into().expect(CUT)),
        }
    }
}

impl std::fmt::Debug for Numbers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self {
            Self::F32(_) => "f32",
            Self::F16(_) => "f16",
            Self::BF16(_) => "bf16",
        };
        write!(f, "{kind}[{}]", self.len())
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
