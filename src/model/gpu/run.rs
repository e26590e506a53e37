//! What a step launches, and the graphs of steps that were launched before.

use std::{num::NonZeroUsize, ops::Range, sync::Arc};

use candle_core::Result;

use super::{
    Llama, Network, OwnHead, PAGE, Size,
    adapter::{group, norm, norms},
    base::{Group, Weights},
};
pub(super) use crate::kernels::cuda::{MAX_RANK, TILE};
use crate::{
    kernels::cuda::{
        Gpu, Kernels, MAX_SITES, Norm as NormLaunch, Normalised, Region, Rows, SPLIT, Shrunk,
        Slice, Slots, Splits, Stacks, Staging, bytes_of, greedy_parts, replay,
    },
    lora::{Inputs, Norm},
};

/// Pages of the shortest sequence that launches tell apart: those of one split of attention.
pub(super) const LEAST_PAGES: usize = SPLIT / PAGE;
/// Splits of rows that are computed side by side: more rows fill a device by themselves.
const SIDE_BY_SIDE: usize = 1024;
/// Rows of captured steps. A step is run as one of the next larger size.
const SIZES: [usize; 12] = [1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256];
/// Graphs that are kept.
pub(super) const GRAPHS: NonZeroUsize = NonZeroUsize::new(96).expect("not 0");

/// What decides which kernels run on how many blocks; what is within them is told in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Run {
    pub(super) rows: usize,
    pub(super) samples: usize,
    pub(super) pooled: usize,
    /// Pages of a sequence; a power of two.
    pub(super) each: usize,
    /// Adapters of a row; 0 where nobody has any.
    pub(super) parts: usize,
}

impl Run {
    /// The size under which it is captured, where it is: answers, of whom all or nearly all rows are sampled.
    fn captured(self, most_samples: usize) -> Option<Self> {
        let rows = SIZES.into_iter().find(|size| *size >= self.rows)?;
        let fits = rows <= most_samples && self.pooled == 0 && self.parts <= 1;
        fits.then_some(Self { rows, samples: rows, ..self })
    }
}

/// What a step computes with, for the most rows there are.
#[derive(Debug)]
pub(super) struct Scratch<G: Gpu> {
    #[expect(dead_code, reason = "it is there to be dropped")]
    memory: Region<G>,
    /// `[rows, hidden]`: what normalisations leave.
    normalised: Slice<u16>,
    /// `[rows, queries + 2 * keys, dim]`
    qkv: Slice<f32>,
    /// `[rows, queries * dim]`
    attended: Slice<u16>,
    /// `[rows, hidden]`: what comes onto the residual stream.
    y: Slice<f32>,
    /// `[rows, 2 * ffn]`
    gate_up: Slice<f32>,
    /// `[rows, ffn]`
    gated: Slice<u16>,
    shrunk: Shrunk,
    answers: Slice<f32>,
    states_of_splits: Slice<f32>,
    /// `[samples, hidden]`
    last: Slice<u16>,
    /// `[samples, vocab]`
    logits: Slice<f32>,
    /// `[rows, hidden]`
    states: Slice<f32>,
    /// The best of each part of the vocabulary: pairs, `[samples, parts]`.
    bests: Slice<f32>,
    /// `[samples]`
    greedy: Slice<i32>,
    results: Staging<G>,
}

/// Lengths of all that [`Scratch`] has, in its order.
struct Lengths {
    halves: [usize; 4],
    singles: [usize; 9],
    tokens: usize,
}

impl Lengths {
    fn of(llama: &Llama, size: &Size) -> Self {
        let spec = llama.spec();
        let most = size.most(llama);
        let (rows, samples, heads) = (most.rows, most.samples, spec.heads);
        let attention = heads.queries * heads.dim;
        let splits = SIDE_BY_SIDE.max(most.pages * PAGE / SPLIT) * heads.queries;
        Self {
            halves: [
                rows * spec.hidden,
                rows * attention,
                rows * spec.ffn,
                // Whole tiles from any row on.
                (samples + TILE) * spec.hidden,
            ],
            singles: [
                rows * heads.width(),
                rows * spec.hidden,
                rows * 2 * spec.ffn,
                rows * most.parts * room(size),
                splits * heads.dim,
                splits * 2,
                samples * spec.vocab,
                rows * spec.hidden,
                samples * greedy_parts(spec.vocab) * 2,
            ],
            tokens: samples,
        }
    }
}

/// The greatest rank of a stack.
fn room(size: &Size) -> usize {
    MAX_SITES * size.rank
}

/// Bytes of the device that a step computes with.
pub(super) fn scratch_bytes(llama: &Llama, size: &Size) -> usize {
    let Lengths { halves, singles, tokens } = Lengths::of(llama, size);
    bytes_of::<i32>(tokens)
        + halves.into_iter().map(bytes_of::<u16>).sum::<usize>()
        + singles.into_iter().map(bytes_of::<f32>).sum::<usize>()
}

impl<G: Gpu> Scratch<G> {
    pub(super) fn new(gpu: &Arc<G>, llama: &Llama, size: &Size) -> Result<Self> {
        let Lengths { halves, singles, tokens } = Lengths::of(llama, size);
        let mut memory = Region::new(gpu, scratch_bytes(llama, size))?;
        let [normalised, attended, gated, last] = halves.map(|len| memory.take(len));
        let [qkv, y, gate_up, shrunk, answers, states_of_splits, logits, states, bests] =
            singles.map(|len| memory.take(len));
        let greedy = memory.take(tokens);
        let results = Staging::new(gpu, 4 * logits.len().max(states.len()))?;
        let shrunk = Shrunk { values: shrunk, room: room(size) };
        Ok(Self {
            memory,
            normalised,
            qkv,
            attended,
            y,
            gate_up,
            gated,
            shrunk,
            answers,
            states_of_splits,
            last,
            logits,
            states,
            bests,
            greedy,
            results,
        })
    }

    /// The logits that the step has left.
    pub(super) fn logits(&mut self, len: usize) -> Result<Vec<f32>> {
        self.receive(self.logits.part(0..len))
    }

    /// The hidden states that the step has left.
    pub(super) fn states(&mut self, len: usize) -> Result<Vec<f32>> {
        self.receive(self.states.part(0..len))
    }

    /// The greedy tokens of some sampled rows; `None` where there is none, as a logit is no number.
    pub(super) fn greedy(&mut self, samples: Range<usize>) -> Result<Vec<Option<u32>>> {
        if samples.is_empty() {
            return Ok(Vec::new());
        }
        let tokens = self.results.receive(self.greedy.part(samples).cast())?.as_chunks::<4>().0;
        Ok(tokens.iter().map(|token| i32::from_le_bytes(*token).try_into().ok()).collect())
    }

    fn receive(&mut self, from: Slice<f32>) -> Result<Vec<f32>> {
        if from.len() == 0 {
            return Ok(Vec::new());
        }
        let numbers = self.results.receive(from.cast())?.as_chunks::<4>().0;
        Ok(numbers.iter().map(|number| f32::from_le_bytes(*number)).collect())
    }

    /// Room for the splits of so many rows, where they are computed side by side.
    fn splits(&self, rows: usize, each: usize) -> Option<Splits> {
        let count = (each * PAGE).div_ceil(SPLIT);
        let (answers, states) = (self.answers, self.states_of_splits);
        (rows == 1 || rows * count <= SIDE_BY_SIDE).then_some(Splits { answers, states, count })
    }
}

impl<G: Gpu> Network<G> {
    /// Runs a step: launch by launch the first time, and what was captured then from there on.
    pub(super) fn compute(&mut self, run: Run, heads: &[OwnHead]) -> Result<()> {
        let captured = run.captured(self.most.samples).filter(|_| heads.is_empty());
        let Some(run) = captured else { return self.launch(run, heads) };
        if let Some(graph) = self.graphs.get(&run) {
            return replay(&*self.gpu, graph);
        }
        // What is loaded when it is first launched cannot be captured.
        self.launch(run, heads)?;
        if self.captures {
            match self.gpu.record(|| self.launch(run, heads)) {
                Ok(graph) => drop(self.graphs.put(run, graph)),
                Err(error) => {
                    tracing::warn!(%error, "no step is captured any more: launches take longer");
                    self.captures = false;
                }
            }
        }
        Ok(())
    }

    fn launch(&self, run: Run, heads: &[OwnHead]) -> Result<()> {
        let kernels = Kernels { gpu: &*self.gpu, half: self.base.half };
        Launches { network: self, kernels, run }.all(heads)
    }
}

/// The launches of one step.
struct Launches<'a, G: Gpu> {
    network: &'a Network<G>,
    kernels: Kernels<'a, G>,
    run: Run,
}

impl<G: Gpu> Launches<'_, G> {
    fn all(&self, heads: &[OwnHead]) -> Result<()> {
        let Network { base, scratch, llama, .. } = self.network;
        let layers = base.layers.len();
        for layer in 0..layers {
            // What the layer before has left comes onto the residual stream first.
            let y = (layer > 0).then_some(scratch.y);
            self.norm(Norm::Attention(layer), y)?;
            self.maps(layer, Inputs::Qkv, (scratch.normalised, scratch.qkv))?;
            self.attend(layer)?;
            self.maps(layer, Inputs::O, (scratch.attended, scratch.y))?;
            self.norm(Norm::FeedForward(layer), Some(scratch.y))?;
            self.maps(layer, Inputs::GateUp, (scratch.normalised, scratch.gate_up))?;
            let gated = (scratch.gated, llama.spec().ffn);
            self.kernels.gate(scratch.gate_up, gated, self.rows())?;
            self.maps(layer, Inputs::Down, (scratch.gated, scratch.y))?;
        }
        self.outputs(heads)
    }

    fn rows(&self) -> Rows {
        self.network.notes.rows(self.run.rows)
    }

    fn slots(&self) -> Option<Slots> {
        (self.run.parts > 0).then(|| self.network.notes.slots(self.run.parts))
    }

    fn norm_of(&self, norm_: Norm, y: Option<Slice<f32>>, slots: Option<Slots>) -> NormLaunch {
        let Network { base, notes, llama, adapters, .. } = self.network;
        let gains = adapters.gains;
        let gain = match norm_ {
            Norm::Attention(layer) => base.layers[layer].attention_norm,
            Norm::FeedForward(layer) => base.layers[layer].feed_forward_norm,
            Norm::Final => base.norm,
        };
        let layers = base.layers.len();
        let own = gains.part(norm(norm_, layers)..gains.len());
        NormLaunch {
            x: notes.x,
            y,
            gain,
            gains: slots.map(|slots| (own, norms(layers), slots)),
            from: None,
            hidden: llama.spec().hidden,
            eps: llama.spec().eps,
        }
    }

    fn norm(&self, norm: Norm, y: Option<Slice<f32>>) -> Result<()> {
        let to = Normalised::Half(self.network.scratch.normalised);
        self.kernels.norm(&self.norm_of(norm, y, self.slots()), self.rows(), to)
    }

    fn maps(&self, layer: usize, inputs: Inputs, (x, y): (Slice<u16>, Slice<f32>)) -> Result<()> {
        let maps = &self.network.base.layers[layer].groups[inputs as usize];
        self.product(maps, group(layer, inputs), (x, y), (self.rows(), self.slots()))
    }

    /// The products of a group of sites with what adapters make of them.
    fn product(
        &self,
        maps: &Group,
        group: usize,
        (x, y): (Slice<u16>, Slice<f32>),
        (rows, slots): (Rows, Option<Slots>),
    ) -> Result<()> {
        self.multiply(maps, (x, y), rows)?;
        self.add(maps, group, (x, y), (rows, slots))
    }

    fn multiply(&self, maps: &Group, (x, y): (Slice<u16>, Slice<f32>), rows: Rows) -> Result<()> {
        let (input, output) = ((x, maps.inputs), (y, maps.width));
        match &maps.weights {
            Weights::Plain(weights) => self.kernels.multiply(*weights, input, output, rows),
            Weights::Panels(launches) => {
                let mut launches = launches.iter();
                launches.try_for_each(|maps| self.kernels.linear(*maps, input, output, rows))
            }
        }
    }

    /// Biases, and what adapters make of products.
    fn add(
        &self,
        maps: &Group,
        group: usize,
        (x, y): (Slice<u16>, Slice<f32>),
        (rows, slots): (Rows, Option<Slots>),
    ) -> Result<()> {
        let output = (y, maps.width);
        if let Some(bias) = maps.bias {
            self.kernels.add_bias(bias, slots, output, rows)?;
        }
        let Some(slots) = slots else { return Ok(()) };
        let Network { adapters, base, scratch, .. } = self.network;
        let stacks = adapters.stacks;
        let stacks = Stacks {
            table: stacks.part(group..stacks.len()),
            groups: super::adapter::groups(base.layers.len()),
            sites: maps.sites.len(),
            inputs: maps.inputs,
            width: maps.width,
            widest: maps.sites.iter().map(|site| site.count).max().unwrap_or(0),
        };
        self.kernels.lora(stacks, slots, (x, y), (scratch.shrunk, rows))
    }

    fn attend(&self, layer: usize) -> Result<()> {
        let Network { base, scratch, llama, notes, .. } = self.network;
        let (rows, each, heads) = (self.rows(), self.run.each, llama.spec().heads);
        let cache = (base.caches[layer], notes.places(each));
        self.kernels.rope_and_write(scratch.qkv, base.turns, cache, (heads, rows))?;
        let splits = scratch.splits(rows.room, each);
        self.kernels.attention((scratch.qkv, scratch.attended), cache, splits, (heads, rows))
    }

    /// Logits of the rows that want them, and hidden states of those that want these.
    fn outputs(&self, heads: &[OwnHead]) -> Result<()> {
        let Network { scratch, notes, .. } = self.network;
        let Run { samples, pooled, parts, .. } = self.run;
        let mut y = Some(scratch.y);
        if pooled > 0 {
            // A row may want both, and its sum is made once.
            self.norm(Norm::Final, y.take())?;
            let norm = self.norm_of(Norm::Final, y, self.slots());
            let norm = NormLaunch { from: Some(notes.pooled()), ..norm };
            self.kernels.norm(&norm, notes.pools(pooled), Normalised::Single(scratch.states))?;
        }
        if samples == 0 {
            return Ok(());
        }
        let rows = notes.samples(samples);
        let norm = self.norm_of(Norm::Final, y, self.slots());
        let norm = NormLaunch { from: Some(notes.sampled()), ..norm };
        self.kernels.norm(&norm, rows, Normalised::Half(scratch.last))?;
        let slots = (parts > 0).then(|| notes.sample_slots(parts));
        let (head, last, hidden) = (&self.network.base.head, scratch.last, notes.hidden());
        self.multiply(head, (last, scratch.logits), rows)?;
        // Rows of an adapter that brings a head have the products of that in their place.
        for (run, OwnHead { samples, maps }) in heads.iter().enumerate() {
            let x = last.part(samples.start * hidden..last.len());
            let y = scratch.logits.part(samples.start * head.width..samples.end * head.width);
            let rows = notes.run(run, samples.len());
            self.kernels.linear(*maps, (x, hidden), (y, head.width), rows)?;
        }
        let group = super::adapter::groups(self.network.base.layers.len()) - 1;
        self.add(head, group, (last, scratch.logits), (rows, slots))?;
        let (parts, tokens) = ((scratch.bests, greedy_parts(head.width)), scratch.greedy);
        self.kernels.greedy((scratch.logits, head.width), parts, tokens, rows)
    }
}
