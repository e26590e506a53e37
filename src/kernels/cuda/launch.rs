//! The kernels as a step launches them: what each is given, checked against its sizes.

use candle_core::{Result, bail};

use super::gpu::{Argument, Gpu, Half, Launch, Product, Slice};
use crate::kernels::{
    attention::Heads,
    panels::{COLUMNS, Encoding},
};

/// Threads of a block, as the kernels have them.
pub(super) const NORM_THREADS: usize = 256;
pub(super) const ROPE_THREADS: usize = 128;
pub(super) const ATTENTION_THREADS: usize = 128;
pub(super) const GATE_THREADS: usize = 256;
pub(super) const GREEDY_THREADS: usize = 256;
pub(super) const LORA_THREADS: usize = 128;
/// Outputs of a block.
pub(super) const EXPAND_OUTPUTS: usize = 256;
pub(super) const BIAS_THREADS: usize = 256;
pub(super) const LINEAR_THREADS: usize = 256;
/// Logits that a block looks at, and threads that look at what the blocks found.
pub(super) const GREEDY_PART: usize = 8192;
const WARP: usize = 32;
/// Positions of a split of attention.
pub(crate) const SPLIT: usize = 256;
/// The widest head.
pub(super) const MAX_DIM: usize = 256;
/// The greatest rank of a site.
pub(crate) const MAX_RANK: usize = 512;
/// The most sites that share an input.
pub(crate) const MAX_SITES: usize = 3;
/// Rows that products compute at a time: memory for rows is filled up to whole tiles.
pub(crate) const TILE: usize = 64;

/// The rows of a launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    /// How many there are: one int, which a captured launch reads anew each time.
    pub(crate) count: Slice<i32>,
    /// How many there is a block for; not fewer.
    pub(crate) room: usize,
}

/// Where the keys and values of rows are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places {
    /// `[sequences, each]`
    pub(crate) pages: Slice<i32>,
    /// Pages that each sequence has room for.
    pub(crate) each: usize,
    /// `[rows]`
    pub(crate) sequences: Slice<i32>,
    /// `[rows]`
    pub(crate) positions: Slice<i32>,
}

/// Keys and values of a layer, each `[pages, key heads, PAGE, dim]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cache {
    pub(crate) keys: Slice<u16>,
    pub(crate) values: Slice<u16>,
}

/// Cosines and sines of every position, `[positions, dim / 2]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turns {
    pub(crate) cosines: Slice<f32>,
    pub(crate) sines: Slice<f32>,
}

/// Which rows go through which adapters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slots {
    /// Of each: its place in the tables, `[rows, parts]`, negative where there is none.
    pub(crate) of_rows: Slice<i32>,
    /// `[rows, parts]`
    pub(crate) weights: Slice<f32>,
    /// Adapters of a row, at most.
    pub(crate) parts: usize,
}

/// What a normalisation takes and leaves; see `norm.cu`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm {
    /// The residual stream `[rows, hidden]`.
    pub(crate) x: Slice<f32>,
    /// What is added to it first.
    pub(crate) y: Option<Slice<f32>>,
    /// `[hidden]`
    pub(crate) gain: Slice<f32>,
    /// Adapters' own gains: of each slot the addresses of `norms` gains, or 0; those of this norm begin here.
    pub(crate) gains: Option<(Slice<u64>, usize, Slots)>,
    /// Which rows are taken.
    pub(crate) from: Option<Slice<i32>>,
    pub(crate) hidden: usize,
    pub(crate) eps: f32,
}

/// Where normalised rows go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Normalised {
    /// To be multiplied.
    Half(Slice<u16>),
    /// To be given away.
    Single(Slice<f32>),
}

/// Maps that share an input and an encoding, as panels. Mirrors the struct of `linear.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinearMaps {
    /// `W [outputs, inputs]` of each.
    pub(crate) panels: [u64; MAX_SITES],
    /// 0 is none.
    pub(crate) outputs: [i32; MAX_SITES],
    /// Where outputs begin in a row of y.
    pub(crate) places: [i32; MAX_SITES],
    /// Of one panel.
    pub(crate) panel_bytes: i32,
    /// Nothing.
    pub(crate) pad: i32,
}

/// Numbers of an adapter, as the host has them. Mirrors the struct of `lora.cu`, as those below do.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LoraNumbers {
    pub(crate) numbers: u64,
    /// Of codes.
    pub(crate) scales: u64,
}

/// What an adapter does at a site.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct LoraSite {
    pub(crate) b: LoraNumbers,
    pub(crate) b_bias: u64,
    pub(crate) gain: u64,
    pub(crate) bias: u64,
    pub(crate) first: i32,
    pub(crate) rank: i32,
    pub(crate) outputs: i32,
    pub(crate) place: i32,
    pub(crate) scale: f32,
    pub(crate) kind: i32,
}

/// What an adapter does at the sites that share an input.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct LoraStack {
    pub(crate) a: LoraNumbers,
    pub(crate) rank: i32,
    pub(crate) kind: i32,
    pub(crate) sites: [LoraSite; MAX_SITES],
}

/// The stacks of one group of sites in the table of all slots.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stacks {
    /// From the group's entry of slot 0 on.
    pub(crate) table: Slice<LoraStack>,
    /// Groups of a slot.
    pub(crate) groups: usize,
    /// Sites of this group.
    pub(crate) sites: usize,
    /// The width of its input.
    pub(crate) inputs: usize,
    /// The width of its outputs together.
    pub(crate) width: usize,
    /// The most outputs of a site.
    pub(crate) widest: usize,
}

/// Room for what a low-rank product leaves between its halves, `[rows, parts, room]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shrunk {
    pub(crate) values: Slice<f32>,
    pub(crate) room: usize,
}

/// Room for the splits of attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Splits {
    /// `[rows, query heads, splits, dim]`
    pub(crate) answers: Slice<f32>,
    /// `[rows, query heads, splits]`: pairs.
    pub(crate) states: Slice<f32>,
    pub(crate) count: usize,
}

/// Launches on one device with one type of numbers.
#[derive(Debug)]
pub(crate) struct Kernels<'a, G> {
    pub(crate) gpu: &'a G,
    pub(crate) half: Half,
}

impl<G: Gpu> Kernels<'_, G> {
    fn launch(
        &self,
        kernel: &str,
        (grid, block): ([usize; 3], usize),
        arguments: &[Argument],
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        // SAFETY: each caller below gives the parameters of its kernel, as the tests of the kernels hold them, and has
        // checked what is read and written against the sizes of its memory.
        unsafe { self.gpu.launch(&Launch { kernel, grid, block, arguments }) }
    }

    fn named(&self, kernel: &str) -> String {
        format!("{kernel}_{}", self.half.name())
    }

    /// Normalises rows of the residual stream, to which something was added.
    pub(crate) fn norm(&self, norm: &Norm, rows: Rows, to: Normalised) -> Result<()> {
        let (kernel, to, room) = match to {
            Normalised::Half(to) => (self.named("rms_norm"), Argument::from(to), to.len()),
            Normalised::Single(to) => ("rms_norm_f32".to_owned(), to.into(), to.len()),
        };
        let most = if norm.from.is_some() { 1 } else { rows.room };
        fits("x", norm.x.len(), most * norm.hidden)?;
        fits("y", norm.y.map_or(usize::MAX, Slice::len), most * norm.hidden)?;
        fits("gain", norm.gain.len(), norm.hidden)?;
        fits("n", room, rows.room * norm.hidden)?;
        let (gains, norms, slots) = match norm.gains {
            Some((gains, norms, slots)) => (Some(gains), norms, Some(slots)),
            None => (None, 0, None),
        };
        let arguments = [
            norm.x.into(),
            norm.y.into(),
            norm.gain.into(),
            gains.into(),
            norms.into(),
            slots.map(|slots| slots.of_rows).into(),
            slots.map_or(1, |slots| slots.parts).into(),
            norm.from.into(),
            to,
            rows.count.into(),
            norm.hidden.into(),
            norm.eps.into(),
        ];
        self.launch(&kernel, ([rows.room, 1, 1], NORM_THREADS), &arguments)
    }

    /// `y [rows, width]`: the products of `x [rows, inputs]` with maps in panels.
    pub(crate) fn linear(
        &self,
        (encoding, maps): (Encoding, LinearMaps),
        (x, inputs): (Slice<u16>, usize),
        (y, width): (Slice<f32>, usize),
        rows: Rows,
    ) -> Result<()> {
        let tile = if rows.room <= 16 { 16 } else { TILE };
        let tiles = rows.room.div_ceil(tile);
        fits("x", x.len(), tiles * tile * inputs)?;
        fits("y", y.len(), rows.room * width)?;
        if !inputs.is_multiple_of(COLUMNS) {
            bail!("products of {inputs} inputs: the kernels take multiples of {COLUMNS}");
        }
        let size = |number: i32| usize::try_from(number).unwrap_or(0);
        let outputs = maps.outputs.map(size);
        for (outputs, place) in outputs.iter().zip(maps.places) {
            fits("a row of y", width, size(place) + outputs)?;
        }
        let widest = outputs.into_iter().max().unwrap_or(0);
        let count = outputs.into_iter().filter(|outputs| *outputs > 0).count();
        let name = format!("{encoding:?}").to_lowercase();
        let kernel = format!("linear_{name}_{}_{tile}", self.half.name());
        let arguments = [
            x.into(),
            Argument::Maps(maps),
            y.into(),
            rows.count.into(),
            inputs.into(),
            width.into(),
        ];
        let grid = [widest.div_ceil(COLUMNS), tiles, count];
        self.launch(&kernel, (grid, LINEAR_THREADS), &arguments)
    }

    /// The same with plain weights `[width, inputs]`, for all rows that there is room for.
    pub(crate) fn multiply(
        &self,
        weights: Slice<u16>,
        (x, inputs): (Slice<u16>, usize),
        (y, outputs): (Slice<f32>, usize),
        rows: Rows,
    ) -> Result<()> {
        let (half, rows) = (self.half, rows.room);
        fits("x", x.len(), rows * inputs)?;
        fits("y", y.len(), rows * outputs)?;
        fits("weights", weights.len(), outputs * inputs)?;
        // SAFETY: the sizes were checked.
        unsafe { self.gpu.multiply(&Product { half, x, weights, y, rows, inputs, outputs }) }
    }

    /// Adds the base's bias to rows that have no adapter.
    pub(crate) fn add_bias(
        &self,
        bias: Slice<f32>,
        slots: Option<Slots>,
        (y, width): (Slice<f32>, usize),
        rows: Rows,
    ) -> Result<()> {
        fits("y", y.len(), rows.room * width)?;
        fits("bias", bias.len(), width)?;
        let arguments = [
            y.into(),
            bias.into(),
            slots.map(|slots| slots.of_rows).into(),
            slots.map_or(1, |slots| slots.parts).into(),
            rows.count.into(),
            width.into(),
        ];
        let grid = [rows.room, width.div_ceil(BIAS_THREADS), 1];
        self.launch("add_bias", (grid, BIAS_THREADS), &arguments)
    }

    /// Adds the adapters' deltas of `x [rows, inputs]` to `y [rows, width]`.
    pub(crate) fn lora(
        &self,
        stacks: Stacks,
        slots: Slots,
        (x, y): (Slice<u16>, Slice<f32>),
        (shrunk, rows): (Shrunk, Rows),
    ) -> Result<()> {
        let Stacks { inputs, width, .. } = stacks;
        fits("x", x.len(), rows.room * inputs)?;
        fits("y", y.len(), rows.room * width)?;
        fits("slots", slots.of_rows.len(), rows.room * slots.parts)?;
        fits("weights", slots.weights.len(), rows.room * slots.parts)?;
        fits("shrunk", shrunk.values.len(), rows.room * slots.parts * shrunk.room)?;
        let arguments = [
            x.into(),
            stacks.table.into(),
            stacks.groups.into(),
            slots.of_rows.into(),
            slots.parts.into(),
            rows.count.into(),
            inputs.into(),
            shrunk.room.into(),
            shrunk.values.into(),
        ];
        // A block sums four ranks at a time; so many blocks have most adapters' at once.
        let grid = [rows.room, 4 * stacks.sites, slots.parts];
        self.launch(&self.named("lora_shrink"), (grid, LORA_THREADS), &arguments)?;
        let arguments = [
            shrunk.values.into(),
            stacks.table.into(),
            stacks.groups.into(),
            slots.of_rows.into(),
            slots.weights.into(),
            slots.parts.into(),
            rows.count.into(),
            shrunk.room.into(),
            width.into(),
            y.into(),
        ];
        let grid = [rows.room, stacks.widest.div_ceil(EXPAND_OUTPUTS), stacks.sites];
        self.launch("lora_expand", (grid, LORA_THREADS), &arguments)
    }

    /// Turns queries and keys of `qkv [rows, queries + 2 * keys, dim]`, and puts keys and values into their pages.
    pub(crate) fn rope_and_write(
        &self,
        qkv: Slice<f32>,
        turns: Turns,
        (cache, places): (Cache, Places),
        (heads, rows): (Heads, Rows),
    ) -> Result<()> {
        fits("qkv", qkv.len(), rows.room * heads.width())?;
        let arguments = [
            qkv.into(),
            turns.cosines.into(),
            turns.sines.into(),
            cache.keys.into(),
            cache.values.into(),
            places.pages.into(),
            places.each.into(),
            places.sequences.into(),
            places.positions.into(),
            rows.count.into(),
            shape_of(heads)?,
        ];
        let kernel = self.named("rope_and_write");
        self.launch(&kernel, ([rows.room, 1, 1], ROPE_THREADS), &arguments)
    }

    /// Attention of turned queries to `y [rows, queries * dim]`; with room for splits side by side, else one after the other.
    pub(crate) fn attention(
        &self,
        (qkv, y): (Slice<f32>, Slice<u16>),
        (cache, places): (Cache, Places),
        splits: Option<Splits>,
        (heads, rows): (Heads, Rows),
    ) -> Result<()> {
        fits("qkv", qkv.len(), rows.room * heads.width())?;
        fits("y", y.len(), rows.room * heads.queries * heads.dim)?;
        let mut arguments = vec![
            qkv.into(),
            cache.keys.into(),
            cache.values.into(),
            places.pages.into(),
            places.each.into(),
            places.sequences.into(),
            places.positions.into(),
            rows.count.into(),
            shape_of(heads)?,
        ];
        let Some(Splits { answers, states, count }) = splits else {
            arguments.push(y.into());
            let shape = ([rows.room, heads.keys, 1], ATTENTION_THREADS);
            return self.launch(&self.named("attention_whole"), shape, &arguments);
        };
        fits("answers", answers.len(), rows.room * heads.queries * count * heads.dim)?;
        fits("states", states.len(), rows.room * heads.queries * count * 2)?;
        arguments.extend([Argument::from(answers), states.into()]);
        let shape = ([rows.room, heads.keys, count], ATTENTION_THREADS);
        self.launch(&self.named("attention_splits"), shape, &arguments)?;
        let arguments = [
            answers.into(),
            states.into(),
            places.positions.into(),
            rows.count.into(),
            shape_of(heads)?,
            count.into(),
            y.into(),
        ];
        let shape = ([rows.room, heads.queries, 1], ATTENTION_THREADS);
        self.launch(&self.named("attention_combine"), shape, &arguments)
    }

    /// `y [rows, width] = silu(gate) * up` of `both [rows, 2 * width]`.
    pub(crate) fn gate(
        &self,
        both: Slice<f32>,
        (y, width): (Slice<u16>, usize),
        rows: Rows,
    ) -> Result<()> {
        fits("both", both.len(), rows.room * 2 * width)?;
        fits("y", y.len(), rows.room * width)?;
        let blocks = width.div_ceil(GATE_THREADS);
        let arguments = [both.into(), y.into(), rows.count.into(), width.into()];
        self.launch(&self.named("silu_mul"), ([rows.room, blocks, 1], GATE_THREADS), &arguments)
    }

    /// The token of the greatest logit of each row of `logits [rows, vocab]`, negative where one is no number.
    pub(crate) fn greedy(
        &self,
        (logits, vocab): (Slice<f32>, usize),
        (bests, parts): (Slice<f32>, usize),
        tokens: Slice<i32>,
        rows: Rows,
    ) -> Result<()> {
        fits("logits", logits.len(), rows.room * vocab)?;
        fits("bests", bests.len(), rows.room * parts * 2)?;
        fits("tokens", tokens.len(), rows.room)?;
        let arguments = [logits.into(), bests.into(), rows.count.into(), vocab.into()];
        let shape = ([rows.room, parts, 1], GREEDY_THREADS);
        self.launch("greedy_parts_f32", shape, &arguments)?;
        let arguments = [bests.into(), tokens.into(), rows.count.into(), parts.into()];
        self.launch("greedy_pick", ([rows.room, 1, 1], WARP), &arguments)
    }
}

/// Parts of a vocabulary that are looked at side by side.
pub(crate) fn greedy_parts(vocab: usize) -> usize {
    vocab.div_ceil(GREEDY_PART)
}

fn shape_of(heads: Heads) -> Result<Argument> {
    let Heads { queries, keys, dim, window } = heads;
    if dim > MAX_DIM || !dim.is_multiple_of(8) {
        bail!("heads of {dim} dimensions: the kernels take multiples of 8 up to {MAX_DIM}");
    }
    let int = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    Ok(Argument::Ints([int(queries), int(keys), int(dim), window.map_or(0, int)]))
}

fn fits(what: &str, there: usize, needed: usize) -> Result<()> {
    if there < needed {
        bail!("a launch was given {there} numbers of {what}, and takes {needed}");
    }
    Ok(())
}
