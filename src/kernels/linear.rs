//! `y = x W^T + b`, with each row's adapter: the product that nearly all time goes into.
//!
//! A first region prepares rows: what was asked for is done to them, they are rounded, and multiplied by their adapters' A. In
//! the second, one task is one panel of 32 outputs for a block of rows. An output is summed in one lane of its own, its inputs
//! (or, in integers, its groups of 32 inputs) in their order, and then gets its row's delta in rank order, so its bits depend
//! on its row, the weights and the adapter alone: not on how many rows there are, which of them share an adapter, or how many
//! threads.

use std::{borrow::Cow, mem::MaybeUninit, ops::Range, sync::Arc};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape};

use super::{
    elementwise::{RmsNorm, silu_mul_row},
    lora::{Delta, Shrunk, StackRows},
    panels::{BLOCK, COLUMNS, Panels},
    pool::{Disjoint, Pool},
    quantize::{Bits, Quantized, tiles},
    simd::{Kernel, LANES, Simd, Tier},
    slice_of,
};

/// Rows of one task: enough to pay for widening a panel, few enough to share the work out; whole tiles of every tier.
const ROW_BLOCK: usize = 96;

/// How a product with quantized weights is computed. Weights that are not quantized are multiplied in `f32` in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Inputs are rounded to 8 bits, in groups of 32, and multiplied with the codes in integers.
    Int8,
    /// Inputs are rounded to 16 bits, row by row, and multiplied with the codes in integers.
    #[default]
    Int16,
    /// Inputs stay `f32`, and codes are widened to the `f32` that they stand for.
    Exact,
}

impl Precision {
    fn bits(self) -> Option<Bits> {
        match self {
            Self::Int8 => Some(Bits::Eight),
            Self::Int16 => Some(Bits::Sixteen),
            Self::Exact => None,
        }
    }
}

/// One frozen map, with the base's own bias.
#[derive(Clone, Debug)]
pub struct Projection {
    /// `W [outputs, inputs]`
    pub weights: Arc<Panels>,
    /// `b [outputs]`
    pub bias: Option<Vec<f32>>,
}

/// What is multiplied.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Rows `[inputs]` as they are.
    Rows,
    /// Rows `[inputs]`, normalised.
    Norm(RmsNorm<'a>),
    /// `silu(gate) * up` of rows `[gate, up]`, each `[inputs]`.
    Gated,
}

impl Input<'_> {
    /// Length of a row that is given, for `inputs` that are multiplied.
    fn width(self, inputs: usize) -> usize {
        match self {
            Self::Rows | Self::Norm(_) => inputs,
            Self::Gated => 2 * inputs,
        }
    }
}

/// `x [rows, inputs] -> y [rows, sum of outputs]`: maps that share an input, their outputs side by side.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a> {
    /// The instructions to use.
    pub tier: Tier,
    /// The threads to use.
    pub pool: &'a Pool,
    /// The arithmetic to use.
    pub precision: Precision,
    /// What is done to rows first.
    pub input: Input<'a>,
    /// The base's maps.
    pub projections: &'a [Projection],
    /// Rows that have a delta: ascending, none twice. Rows in none of them are the base's own.
    pub stacks: &'a [StackRows<'a>],
}

impl CustomOp1 for Linear<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, outputs) = self.shape(layout)?;
        let y = self.apply(slice_of(x, layout)?, rows, None);
        Ok((CpuStorage::F32(y), (rows, outputs).into()))
    }
}

/// With a second tensor `[rows, outputs]`, which is added: the residual stream.
impl CustomOp2 for Linear<'_> {
    fn name(&self) -> &'static str {
        "linear-residual"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, outputs) = self.shape(layout)?;
        let residual = slice_of(residual, residual_layout)?;
        if residual.len() != rows * outputs {
            candle_core::bail!("linear: a residual of {} for [{rows}, {outputs}]", residual.len());
        }
        let y = self.apply(slice_of(x, layout)?, rows, Some(residual));
        Ok((CpuStorage::F32(y), (rows, outputs).into()))
    }
}

impl Linear<'_> {
    /// `(rows, outputs)` of the product with an input of this layout.
    fn shape(&self, x: &Layout) -> Result<(usize, usize)> {
        let (rows, width) = x.shape().dims2()?;
        let fits = |p: &Projection| self.input.width(p.weights.inputs()) == width;
        if let Some(other) = self.projections.iter().find(|p| !fits(p)) {
            candle_core::bail!("linear: rows of {width} for {:?}", other.weights);
        }
        Ok((rows, self.outputs()))
    }

    fn inputs(&self) -> usize {
        self.projections.first().map_or(0, |p| p.weights.inputs())
    }

    fn outputs(&self) -> usize {
        self.projections.iter().map(|p| p.weights.outputs()).sum()
    }

    /// `x [rows, inputs] -> y [rows, outputs]`, both contiguous, with `onto [rows, outputs]` added.
    ///
    /// # Panics
    /// Where a slice is not of its shape.
    pub fn apply(&self, x: &[f32], rows: usize, onto: Option<&[f32]>) -> Vec<f32> {
        let stride = self.outputs();
        assert_eq!(x.len(), rows * self.input.width(self.inputs()), "x is [rows, inputs]");
        assert!(onto.is_none_or(|onto| onto.len() == rows * stride), "onto is [rows, outputs]");
        let prepared = Prepared::new(self, x, rows);
        let mut panels = Vec::new();
        let mut first = 0;
        for (site, projection) in self.projections.iter().enumerate() {
            panels.extend((0..projection.weights.count()).map(|panel| (site, panel, first)));
            first += projection.weights.outputs();
        }
        let mut y = Vec::with_capacity(rows * stride);
        let out = Disjoint::new(&mut y.spare_capacity_mut()[..rows * stride]);
        let blocks = rows.div_ceil(ROW_BLOCK);
        self.pool.run(panels.len() * blocks, |task| {
            // Neighbouring tasks share a panel, which the first of them has brought into the cache.
            let (site, panel, first) = panels[task / blocks];
            let block = task % blocks * ROW_BLOCK;
            let rows = block..rows.min(block + ROW_BLOCK);
            let at = first + panel * COLUMNS;
            let part = PanelRows {
                op: self,
                prepared: &prepared,
                onto,
                y: &out,
                rows,
                site,
                panel,
                at,
                stride,
            };
            let weights = &self.projections[site].weights;
            match prepared.quantized.as_ref().filter(|_| weights.are_codes()) {
                Some(quantized) => part.integers(quantized),
                None => self.tier.run(part),
            }
        });
        // SAFETY: every task was done, and wrote the outputs of its panel for its rows: together all.
        unsafe { y.set_len(rows * stride) };
        y
    }

    /// Does to rows what comes before the product: `[rows, width of a given row]` to `[rows, inputs]`.
    fn change(&self, rows: &Range<usize>, given: &[f32], changed: &mut [f32]) {
        let inputs = self.inputs();
        let given = given.chunks_exact(self.input.width(inputs).max(1));
        for ((row, x), y) in rows.clone().zip(given).zip(changed.chunks_exact_mut(inputs.max(1))) {
            match self.input {
                Input::Rows => y.copy_from_slice(x),
                Input::Norm(norm) => norm.row(self.tier, row, x, y),
                Input::Gated => silu_mul_row(self.tier, x, y),
            }
        }
    }

    /// The stack of `row` as its place in the list, and the row that it or its absence ends before.
    fn stack_at(&self, row: usize) -> (Option<usize>, usize) {
        let after = self.stacks.partition_point(|stack| stack.rows.start <= row);
        let next = self.stacks.get(after).map_or(usize::MAX, |stack| stack.rows.start);
        match after.checked_sub(1).map(|index| (index, &self.stacks[index].rows)) {
            Some((index, rows)) if rows.contains(&row) => (Some(index), rows.end),
            _ => (None, next),
        }
    }

    /// Cuts rows where the stack changes.
    fn runs(&self, rows: Range<usize>) -> impl Iterator<Item = (Range<usize>, Option<usize>)> {
        let mut row = rows.start;
        std::iter::from_fn(move || {
            let start = row;
            let (stack, end) = (start < rows.end).then(|| self.stack_at(start))?;
            row = end.min(rows.end);
            Some((start..row, stack))
        })
    }
}

/// Rows as the panels take them.
struct Prepared<'a> {
    /// `[rows, inputs]`
    x: Cow<'a, [f32]>,
    quantized: Option<Quantized>,
    shrunk: Shrunk,
}

impl<'a> Prepared<'a> {
    fn new(op: &Linear<'_>, x: &'a [f32], rows: usize) -> Self {
        let (inputs, width) = (op.inputs(), op.input.width(op.inputs()));
        let codes = op.projections.iter().any(|projection| projection.weights.are_codes());
        let bits = op.precision.bits().filter(|_| codes);
        let mut quantized = bits.map(|bits| Quantized::new(bits, rows, inputs));
        let mut shrunk = Shrunk::new(op.stacks);
        let mut changed = match op.input {
            Input::Rows => Vec::new(),
            Input::Norm(_) | Input::Gated => vec![0.0; rows * inputs],
        };
        let tiles: Vec<_> = tiles(0..rows, op.tier.tile_rows()).collect();
        let places: Vec<_> = tiles
            .iter()
            .map(|tile| {
                let stacked = |(rows, stack): (Range<usize>, Option<usize>)| {
                    let index = stack?;
                    Some((shrunk.place(index, &op.stacks[index], &rows), rows, index))
                };
                op.runs(tile.clone()).filter_map(stacked).collect::<Vec<_>>()
            })
            .collect();
        let (to, room) = (Disjoint::new(&mut changed), quantized.as_mut().map(Quantized::room));
        let values = shrunk.room();
        // Where there are fewer tiles than threads, those that would wait multiply with a share of A. They do to rows
        // what is asked for once more: that costs less than to wait for each other once more.
        let alone = op.stacks.is_empty();
        let shares = if alone { 1 } else { op.pool.threads().div_ceil(tiles.len().max(1)) };
        let as_it_is = matches!(op.input, Input::Rows) && alone && room.is_none();
        let tasks = if as_it_is { 0 } else { tiles.len() * shares };
        op.pool.run(tasks, |task| {
            let (index, share) = (task / shares, task % shares);
            let rows = &tiles[index];
            let given = &x[rows.start * width..rows.end * width];
            let mut again = Vec::new();
            let x = match op.input {
                Input::Rows => given,
                Input::Norm(_) | Input::Gated => {
                    let changed = if share == 0 {
                        // SAFETY: tiles are disjoint, and the first share of each is one task.
                        unsafe { to.part(rows.start * inputs..rows.end * inputs) }
                    } else {
                        again.resize(rows.len() * inputs, 0.0);
                        &mut again[..]
                    };
                    op.change(rows, given, changed);
                    changed
                }
            };
            if let Some(room) = room.as_ref().filter(|_| share == 0) {
                // SAFETY: as above.
                unsafe { room.round(op.tier, rows, x) };
            }
            for (place, own, stack) in &places[index] {
                let x = &x[(own.start - rows.start) * inputs..(own.end - rows.start) * inputs];
                let stack = op.stacks[*stack].stack;
                // SAFETY: as above, where each share has ranks of its own; each row of a stack has a place of its own.
                unsafe {
                    stack.shrink(op.tier, x, stack.share(share, shares), (&values, place.start));
                }
            }
        });
        let x = match op.input {
            Input::Rows => Cow::Borrowed(x),
            Input::Norm(_) | Input::Gated => Cow::Owned(changed),
        };
        Self { x, quantized, shrunk }
    }
}

/// One panel for a block of rows. As a kernel: in `f32`.
struct PanelRows<'a> {
    op: &'a Linear<'a>,
    prepared: &'a Prepared<'a>,
    onto: Option<&'a [f32]>,
    y: &'a Disjoint<'a, MaybeUninit<f32>>,
    rows: Range<usize>,
    site: usize,
    panel: usize,
    /// The panel's first output in a row of y.
    at: usize,
    /// Length of a row of y.
    stride: usize,
}

impl PanelRows<'_> {
    fn weights(&self) -> &Panels {
        &self.op.projections[self.site].weights
    }

    /// The same in integers, tile after tile.
    fn integers(&self, quantized: &Quantized) {
        for rows in tiles(self.rows.clone(), self.op.tier.tile_rows()) {
            match rows.len() {
                1 => self.tile::<1>(quantized, rows),
                2 => self.tile::<2>(quantized, rows),
                4 => self.tile::<4>(quantized, rows),
                8 => self.tile::<8>(quantized, rows),
                other => unreachable!("a tile of {other} rows"),
            }
        }
    }

    fn tile<const R: usize>(&self, quantized: &Quantized, rows: Range<usize>) {
        let stacks = self.op.runs(rows.clone()).filter_map(|(_, stack)| stack);
        for stack in stacks {
            if let Some(low_rank) = &self.op.stacks[stack].stack.sites[self.site].low_rank {
                low_rank.prefetch(self.panel * COLUMNS);
            }
        }
        let tile = quantized.tile(rows.start);
        let mut sums = self.weights().dots::<R>(self.op.tier, self.panel, tile);
        self.finish(rows, &mut sums);
    }

    /// What comes after the product with the base's weights: deltas, biases, and the residual.
    fn finish(&self, rows: Range<usize>, sums: &mut [[f32; COLUMNS]]) {
        let projection = &self.op.projections[self.site];
        let from = self.panel * COLUMNS;
        for (run, stack) in self.op.runs(rows.clone()) {
            let sums = &mut sums[run.start - rows.start..run.end - rows.start];
            let mut bias = &projection.bias;
            let delta = stack.map(|index| (index, &self.op.stacks[index]));
            if let Some((index, stack)) = delta {
                let Delta { low_rank, gain, bias: own } = &stack.stack.sites[self.site];
                if let Some(low_rank) = low_rank {
                    let shrunk = &self.prepared.shrunk;
                    let shrunk = shrunk.values(shrunk.place(index, stack, &run));
                    low_rank.expand(self.op.tier, (shrunk, stack.stack.rank), from, sums);
                    each(sums, from, low_rank.bias.as_ref(), |y, bias| *y += bias);
                }
                each(sums, from, gain.as_ref(), |y, gain| *y *= gain);
                bias = if own.is_some() { own } else { bias };
            }
            each(sums, from, bias.as_ref(), |y, bias| *y += bias);
            for (row, sums) in run.zip(sums) {
                self.write(row, sums);
            }
        }
    }

    /// Puts outputs in their place.
    fn write(&self, row: usize, sums: &[f32; COLUMNS]) {
        let columns = COLUMNS.min(self.weights().outputs() - self.panel * COLUMNS);
        let at = row * self.stride + self.at..row * self.stride + self.at + columns;
        // SAFETY: this task alone writes these rows of this panel.
        let out = unsafe { self.y.part(at.clone()) };
        match self.onto {
            Some(onto) => {
                let sums = sums.iter().zip(&onto[at]);
                for (out, (sum, onto)) in out.iter_mut().zip(sums) {
                    out.write(sum + onto);
                }
            }
            None => {
                for (out, sum) in out.iter_mut().zip(sums) {
                    out.write(*sum);
                }
            }
        }
    }
}

/// Applies a term of each output, from output `from` on, to all rows.
fn each(
    sums: &mut [[f32; COLUMNS]],
    from: usize,
    terms: Option<&Vec<f32>>,
    apply: fn(&mut f32, f32),
) {
    if let Some(terms) = terms {
        for sums in sums {
            sums.iter_mut().zip(&terms[from..]).for_each(|(sum, term)| apply(sum, *term));
        }
    }
}

#[expect(clippy::inline_always, reason = "compiled once per tier")]
impl Kernel for PanelRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.rows.len() {
            1 => self.straight::<S, 1>(simd),
            2 => self.straight::<S, 2>(simd),
            _ => self.blocked(simd),
        }
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl PanelRows<'_> {
    /// Few rows: weights are widened into registers and used at once.
    #[inline(always)]
    fn straight<S: Simd, const R: usize>(&self, simd: S) {
        let x = std::array::from_fn(|r| self.input(self.rows.start + r));
        let acc = self.weights().accumulate::<S, R>(simd, self.panel, x);
        let mut sums = [[0.0; COLUMNS]; R];
        for (sums, acc) in sums.iter_mut().zip(acc) {
            let [left, right] = sums.as_chunks_mut::<LANES>().0 else { unreachable!("two halves") };
            simd.store(acc[0], left);
            simd.store(acc[1], right);
        }
        self.finish(self.rows.clone(), &mut sums);
    }

    /// Many rows: weights are widened once into the first cache, block after block, and every row goes over them.
    ///
    /// An output is still one chain of fused multiply-adds in input order, with the very same factors.
    #[expect(
        clippy::large_stack_arrays,
        reason = "32 KiB of a thread's 2 MiB, and no allocation for each task"
    )]
    #[inline(always)]
    fn blocked<S: Simd>(&self, simd: S) {
        let weights = self.weights();
        let mut widened = [[0.0; COLUMNS]; BLOCK];
        let mut sums = [[0.0; COLUMNS]; ROW_BLOCK];
        for from in (0..weights.inputs()).step_by(BLOCK) {
            let inputs = from..weights.inputs().min(from + BLOCK);
            weights.widen(simd, self.panel, inputs.clone(), &mut widened);
            let widened = &widened[..inputs.len()];
            let mut row = 0;
            while row < self.rows.len() {
                let left = self.rows.len() - row;
                let sums = &mut sums[row..];
                if left >= 12 && S::ACCUMULATORS >= 24 {
                    self.multiply::<S, 12>(simd, row, (&inputs, widened), sums);
                    row += 12;
                } else if left >= 4 {
                    self.multiply::<S, 4>(simd, row, (&inputs, widened), sums);
                    row += 4;
                } else {
                    self.multiply::<S, 1>(simd, row, (&inputs, widened), sums);
                    row += 1;
                }
            }
        }
        self.finish(self.rows.clone(), &mut sums[..self.rows.len()]);
    }

    /// `sums[r] += x[row + r][inputs] · widened`
    #[inline(always)]
    fn multiply<S: Simd, const R: usize>(
        &self,
        simd: S,
        row: usize,
        (inputs, widened): (&Range<usize>, &[[f32; COLUMNS]]),
        sums: &mut [[f32; COLUMNS]],
    ) {
        let x: [&[f32]; R] =
            std::array::from_fn(|r| &self.input(self.rows.start + row + r)[inputs.clone()]);
        let mut acc = [[simd.splat(0.0); 2]; R];
        for r in 0..R {
            let [left, right] = sums[r].as_chunks::<LANES>().0 else { unreachable!("two halves") };
            acc[r] = [simd.load(left), simd.load(right)];
        }
        let octets = x.map(|x| x.as_chunks::<8>().0);
        let (whole, rest) = widened.as_chunks::<8>();
        for (octet, w) in whole.iter().enumerate() {
            for k in 0..8 {
                let [left, right] = w[k].as_chunks::<LANES>().0 else { unreachable!("two halves") };
                let w = [simd.load(left), simd.load(right)];
                for r in 0..R {
                    let x = simd.splat(octets[r][octet][k]);
                    acc[r] = [simd.fma(x, w[0], acc[r][0]), simd.fma(x, w[1], acc[r][1])];
                }
            }
        }
        for (k, w) in rest.iter().enumerate() {
            let [left, right] = w.as_chunks::<LANES>().0 else { unreachable!("two halves") };
            let w = [simd.load(left), simd.load(right)];
            for r in 0..R {
                let x = simd.splat(x[r][whole.len() * 8 + k]);
                acc[r] = [simd.fma(x, w[0], acc[r][0]), simd.fma(x, w[1], acc[r][1])];
            }
        }
        for r in 0..R {
            let [left, right] = sums[r].as_chunks_mut::<LANES>().0 else {
                unreachable!("two halves")
            };
            simd.store(acc[r][0], left);
            simd.store(acc[r][1], right);
        }
    }

    fn input(&self, row: usize) -> &[f32] {
        let inputs = self.weights().inputs();
        &self.prepared.x[row * inputs..(row + 1) * inputs]
    }
}

#[cfg(test)]
mod tests {
    use half::f16;
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::{
        lora::{LowRank, NumberType, Numbers, Stack, padded_inputs, padded_outputs, place_in_b},
        memory::Slab,
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

    fn projection(
        draw: &mut Draw,
        encoding: Encoding,
        outputs: usize,
        inputs: usize,
    ) -> Projection {
        let bytes = rows(draw, encoding, outputs, inputs);
        let weights = Panels::pack(encoding, (outputs, inputs), &bytes, |row| row).unwrap();
        let bias = draw.next().is_multiple_of(2).then(|| draw.floats(outputs));
        Projection { weights: Arc::new(weights), bias }
    }

    fn numbers(draw: &mut Draw, rows: usize, (len, padded): (usize, usize)) -> Numbers {
        let kinds = [NumberType::F32, NumberType::F16, NumberType::BF16];
        let kind = kinds[draw.below(3)];
        let slab = Slab::new(Numbers::bytes_of(kind, rows * padded)).unwrap();
        let mut all = Numbers::zeros(&slab, kind, rows * padded).unwrap();
        for row in 0..rows {
            for i in 0..len {
                all.set(row * padded + i, draw.unit());
            }
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

    /// The plain reference, in `f64`: one row, one output at a time. The base sees `inputs`, the adapter `x`.
    fn reference(
        x: &[f32],
        inputs: &[f32],
        projections: &[Projection],
        stack: Option<&Stack>,
    ) -> Vec<f64> {
        let dot = |x: &[f32], w: &dyn Fn(usize) -> f32| -> f64 {
            x.iter().enumerate().map(|(k, x)| f64::from(*x) * f64::from(w(k))).sum()
        };
        let mut y = Vec::new();
        for (site, projection) in projections.iter().enumerate() {
            let delta = stack.map(|stack| &stack.sites[site]);
            for output in 0..projection.weights.outputs() {
                let mut w = vec![0.0; x.len()];
                projection.weights.row(output, &mut w);
                let mut sum = dot(inputs, &|k| w[k]);
                let mut bias = projection.bias.as_ref();
                if let (Some(delta), Some(stack)) = (delta, stack) {
                    if let Some(low) = &delta.low_rank {
                        let stride = padded_inputs(stack.inputs);
                        let added: f64 = (0..low.rank)
                            .map(|r| {
                                let h = dot(x, &|k| stack.a.get((low.first + r) * stride + k));
                                h * f64::from(low.b.get(place_in_b(low.rank, r, output)))
                            })
                            .sum();
                        sum += added * f64::from(low.scale);
                        sum += low.bias.as_ref().map_or(0.0, |b| f64::from(b[output]));
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
            32 => 32 * (1 + draw.below(5)),
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
            count in 1_usize..40,
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
            let mut ranges = Vec::new();
            let mut row = 0;
            while row < count {
                let end = count.min(row + 1 + draw.below(9));
                if !draw.next().is_multiple_of(3) {
                    ranges.push(StackRows { rows: row..end, stack: &stacks[draw.below(3)] });
                }
                row = end;
            }
            let x = draw.floats(count * inputs);
            let mut first: Option<Vec<f32>> = None;
            for (tier, threads) in Tier::available().into_iter().zip([1, 2, 3]) {
                let pool = Pool::new(threads).unwrap();
                let input = Input::Rows;
                let op = Linear { tier, pool: &pool, precision, input, projections: &projections, stacks: &ranges };
                let y = op.apply(&x, count, None);
                for row in 0..count {
                    let x = &x[row * inputs..(row + 1) * inputs];
                    let range = ranges.iter().find(|range| range.rows.contains(&row));
                    let y = &y[row * total..(row + 1) * total];
                    let seen = inputs_of(x, precision, &projections);
                    let want = reference(x, &seen, &projections, range.map(|r| r.stack));
                    for (got, want) in y.iter().zip(want) {
                        prop_assert!((f64::from(*got) - want).abs() < 2e-4 * (1.0 + want.abs()), "{got} is not {want}");
                    }
                    let own: Vec<_> = range.map(|r| StackRows { rows: 0..1, stack: r.stack }).into_iter().collect();
                    let alone = Linear { stacks: &own, ..op }.apply(x, 1, None);
                    prop_assert_eq!(y, &alone);
                }
                prop_assert_eq!(&y, first.get_or_insert_with(|| y.clone()), "{}", tier);
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
                    let want = reference(x, &seen, &projections, None);
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
                        let finite =
                            |row: usize| y[row * 40..][..40].iter().filter(|y| y.is_finite());
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

    #[test]
    fn greatest_codes_and_inputs_do_not_overflow() {
        let pool = Pool::new(1).unwrap();
        for (encoding, greatest) in [(Encoding::Q8_0, -128.0), (Encoding::Q6_K, 31.0)] {
            let (inputs, bytes) = encoding.block();
            let mut block = vec![if encoding == Encoding::Q8_0 { 0x80 } else { 0xff }; bytes];
            if encoding == Encoding::Q8_0 {
                block[..2].copy_from_slice(&f16::ONE.to_le_bytes());
            } else {
                block[192..208].fill(1);
                block[208..].copy_from_slice(&f16::ONE.to_le_bytes());
            }
            let weights = Panels::pack(encoding, (1, inputs), &block, |row| row).unwrap();
            let projections = [Projection { weights: Arc::new(weights), bias: None }];
            for sign in [1.0, -1.0] {
                let x = vec![sign; inputs];
                for tier in Tier::available() {
                    let precision = Precision::Int16;
                    let op = Linear {
                        tier,
                        pool: &pool,
                        precision,
                        input: Input::Rows,
                        projections: &projections,
                        stacks: &[],
                    };
                    let y = op.apply(&x, 1, None);
                    let want = sign * greatest * inputs as f32;
                    assert!(
                        (y[0] - want).abs() < 1e-2,
                        "{encoding:?} on {tier}: {} is not {want}",
                        y[0]
                    );
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
}
