//! `y = x W^T + b`, with each row's adapter: the product that nearly all time goes into.
//!
//! A first region prepares rows: what was asked for is done to them, they are rounded, and multiplied by their adapters' A. In
//! the second, one task is one panel of 32 outputs for a block of rows. An output is summed in one lane of its own, its inputs
//! (or, in integers, its groups of 32 inputs) in their order, and then gets its row's delta in rank order, so its bits depend
//! on its row, the weights and the adapter alone: not on how many rows there are, which of them share an adapter, or how many
//! threads.

use std::{borrow::Cow, cell::Cell, mem::MaybeUninit, ops::Range, sync::Arc};

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
    /// Rows that have a delta, ascending. Rows in none of them are the base's own; those of a mix are in several, one after the
    /// other and all of the same rows.
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
        let fits = |stack: &StackRows<'_>| stack.stack.inputs == self.inputs();
        assert!(self.stacks.iter().all(fits), "an adapter's A is [rank, inputs]");
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

    /// The stacks of `row` as their places in the list, and the row that they or their absence end before.
    fn stacks_at(&self, row: usize) -> (Range<usize>, usize) {
        let after = self.stacks.partition_point(|stack| stack.rows.start <= row);
        let next = self.stacks.get(after).map_or(usize::MAX, |stack| stack.rows.start);
        match self.stacks[..after].last().map(|last| &last.rows) {
            Some(rows) if rows.contains(&row) => {
                let first =
                    self.stacks[..after].partition_point(|stack| stack.rows.start < rows.start);
                (first..after, rows.end)
            }
            _ => (after..after, next),
        }
    }

    /// Cuts rows where the stacks change.
    fn runs(&self, rows: Range<usize>) -> impl Iterator<Item = Run> {
        let mut row = rows.start;
        std::iter::from_fn(move || {
            let start = row;
            let (stacks, end) = (start < rows.end).then(|| self.stacks_at(start))?;
            row = end.min(rows.end);
            Some((start..row, stacks))
        })
    }
}

/// Rows that have the same stacks, and these as places in the list.
type Run = (Range<usize>, Range<usize>);

/// Rows as the panels take them.
struct Prepared<'a> {
    /// `[rows, inputs]`
    x: Cow<'a, [f32]>,
    quantized: Option<Quantized>,
    shrunk: Shrunk,
    /// All rows.
    runs: Vec<Run>,
}

impl<'a> Prepared<'a> {
    /// Some rows, cut where the stacks change.
    fn runs(&self, rows: Range<usize>) -> impl Iterator<Item = Run> {
        let first = self.runs.partition_point(|(run, _)| run.end <= rows.start);
        let own = self.runs[first..].iter().take_while(move |(run, _)| run.start < rows.end);
        own.map(move |(run, stacks)| {
            (run.start.max(rows.start)..run.end.min(rows.end), stacks.clone())
        })
    }

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
                let stacked = |(rows, stacks): (Range<usize>, Range<usize>)| {
                    let place = |index: usize| {
                        (shrunk.place(index, &op.stacks[index], &rows), rows.clone(), index)
                    };
                    stacks.map(place).collect::<Vec<_>>()
                };
                op.runs(tile.clone()).flat_map(stacked).collect::<Vec<_>>()
            })
            .collect();
        let (to, room) = (Disjoint::new(&mut changed), quantized.as_mut().map(Quantized::room));
        let values = shrunk.room();
        // Threads that would find no tile multiply with a share of A. They do to rows what is asked for once more: that
        // costs less than to wait for each other once more.
        let alone = op.stacks.is_empty();
        let shares = if alone { 1 } else { op.pool.threads() / tiles.len().max(1) }.max(1);
        let as_it_is = matches!(op.input, Input::Rows) && alone && room.is_none();
        let tasks = if as_it_is { 0 } else { tiles.len() * shares };
        op.pool.run(tasks, |task| {
            let (index, share) = (task / shares, task % shares);
            let rows = &tiles[index];
            let ranks = |stack: usize| op.stacks[stack].stack.share(share, shares);
            if share > 0 && places[index].iter().all(|(_, _, stack)| ranks(*stack).is_empty()) {
                return;
            }
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
                let (stack, ranks) = (op.stacks[*stack].stack, ranks(*stack));
                // SAFETY: as above, where each share has ranks of its own; each row of a stack has a place of its own.
                unsafe { stack.shrink(op.tier, x, ranks, (&values, place.start)) };
            }
        });
        let x = match op.input {
            Input::Rows => Cow::Borrowed(x),
            Input::Norm(_) | Input::Gated => Cow::Owned(changed),
        };
        Self { x, quantized, shrunk, runs: op.runs(0..rows).collect() }
    }
}

/// Outputs of a panel for a task's rows.
type Sums = [[f32; COLUMNS]; ROW_BLOCK];

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

    /// The same in integers.
    fn integers(&self, quantized: &Quantized) {
        // Kept, so that it is not cleared for each task.
        thread_local!(static SUMS: Cell<Option<Box<Sums>>> = const { Cell::new(None) });
        let mut room = SUMS.take().unwrap_or_else(|| Box::new([[0.0; COLUMNS]; ROW_BLOCK]));
        let sums = &mut room[..self.rows.len()];
        let (panel, x) = ((self.op.tier, self.panel), (quantized, self.rows.clone()));
        self.weights().products(panel, x, sums, |rows| self.ask(rows));
        self.finish(sums);
        SUMS.set(Some(room));
    }

    /// Asks for the part of B that the adapters of some rows will need.
    fn ask(&self, rows: Range<usize>) {
        for stack in self.prepared.runs(rows).flat_map(|(_, stacks)| stacks) {
            if let Some(low_rank) = &self.op.stacks[stack].stack.sites[self.site].low_rank {
                low_rank.prefetch(self.panel * COLUMNS);
            }
        }
    }

    /// What comes after the product with the base's weights, given for all rows: deltas, biases, and the residual.
    fn finish(&self, sums: &mut [[f32; COLUMNS]]) {
        let projection = &self.op.projections[self.site];
        let from = self.panel * COLUMNS;
        for (run, stacks) in self.prepared.runs(self.rows.clone()) {
            let sums = &mut sums[run.start - self.rows.start..run.end - self.rows.start];
            let mut bias = &projection.bias;
            for index in stacks {
                let stack = &self.op.stacks[index];
                let Delta { low_rank, gain, bias: own } = &stack.stack.sites[self.site];
                if let Some(low_rank) = low_rank {
                    let shrunk = &self.prepared.shrunk;
                    let shrunk = shrunk.values(shrunk.place(index, stack, &run));
                    let (width, weight) = (stack.stack.rank, stack.weight);
                    low_rank.expand(self.op.tier, (shrunk, width), (from, weight), sums);
                    each(sums, from, low_rank.bias.as_ref(), |y, bias| *y += weight * bias);
                }
                // Neither is part of a mix.
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
    apply: impl Fn(&mut f32, f32),
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
        self.finish(&mut sums);
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
        self.finish(&mut sums[..self.rows.len()]);
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
mod tests;
