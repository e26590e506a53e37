//! The network on a GPU.
//!
//! A step is the CPU's, in other hands: the same rows, the same pages, the same adapters. What differs:
//!
//! - The residual stream and what products give are `f32`; what products take, and keys and values, are 16 bits wide.
//! - All memory is taken at the start ([`Plan`]): the base, keys and values, adapters, and what a step needs. A step allocates nothing.
//! - What a step tells the device lies at fixed addresses ([`notes`]), so that steps in which few rows are computed, as answers are,
//!   are captured once for each size and replayed. Steps without any adapter have graphs of their own, without a trace of one.
//! - Adapters are brought by a thread and a stream of their own ([`carrier`]) into pieces of one region ([`residents`]); who waits
//!   for one that is not there yet is left in line, and everybody else goes on.
//! - Rows are embedded on the host, which knows every kind of adapter's embedding.
//!
//! The tests run all of it on the host: the same kernels, launched as here.

mod adapter;
mod adapters;
mod base;
mod carrier;
mod notes;
mod residents;
mod run;
#[cfg(test)]
pub(crate) mod tests;

use std::{collections::BTreeSet, fmt, sync::Arc};

use candle_core::{Result, bail};
use lru::LruCache;

use self::{
    adapter::Shape,
    adapters::{Adapters, Room},
    base::Base,
    notes::{Most, Notes, Told},
    run::{Run, Scratch},
};
use super::{Llama, PAGE, Spec, Step};
pub(crate) use crate::kernels::cuda::Gpu;
use crate::{
    kernels::{cuda::LinearMaps, panels::Encoding},
    lora::{Adapter, Digest},
};

/// How products of a base that is not quantized are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Products {
    /// By cuBLAS, which may sum in another order where there are more rows.
    Fastest,
    /// In one order for each row, in any company.
    Fixed,
}

/// How large the network on a device is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// KV pages.
    pub(crate) pages: usize,
    /// Most positions of a sequence.
    pub(crate) context: usize,
    /// Most rows of a step.
    pub(crate) rows: usize,
    /// Most sequences of a step.
    pub(crate) sequences: usize,
    /// Rows beyond one of each sequence whose logits a step may want.
    pub(crate) scored: usize,
    /// Most adapters of a row.
    pub(crate) parts: usize,
    /// The greatest rank.
    pub(crate) rank: usize,
    /// Bytes for adapters.
    pub(crate) adapter_bytes: usize,
    /// How the base is multiplied.
    pub(crate) products: Products,
}

/// Memory of the device, in bytes, by what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The base's weights, and the angles of positions.
    pub(crate) base: usize,
    /// Keys and values.
    pub(crate) kv: usize,
    /// Adapters.
    pub(crate) adapters: usize,
    /// The tables in which adapters are looked up.
    pub(crate) tables: usize,
    /// What a step needs besides.
    pub(crate) step: usize,
    /// What is left to the driver.
    pub(crate) driver: usize,
}

impl Plan {
    /// All of it.
    pub(crate) fn total(&self) -> usize {
        let Self { base, kv, adapters, tables, step, driver } = self;
        base + kv + adapters + tables + step + driver
    }
}

/// What a driver takes besides, for captured steps and the code of kernels: nobody can say it beforehand.
const DRIVERS: usize = 256 << 20;

impl Size {
    fn most(&self, llama: &Llama) -> Most {
        Most {
            rows: self.rows.next_multiple_of(run::TILE),
            samples: (self.sequences + self.scored).min(self.rows).next_multiple_of(run::TILE),
            sequences: self.sequences,
            // Pages are told in rows of a power of two.
            pages: self.context.div_ceil(PAGE).next_power_of_two().max(run::LEAST_PAGES),
            parts: self.parts,
            hidden: llama.spec().hidden,
        }
    }

    fn room(&self, llama: &Llama) -> Room {
        Room::new(self.adapter_bytes, self.rank, llama.spec().layers, self.parts)
    }

    /// What the device's memory is for.
    pub(crate) fn plan(&self, llama: &Llama) -> Plan {
        Plan {
            base: base::bytes(llama, self.products),
            kv: base::kv_bytes(llama, self.pages),
            adapters: self.adapter_bytes,
            tables: self.room(llama).tables(),
            step: self.most(llama).bytes() + run::scratch_bytes(llama, self),
            driver: DRIVERS,
        }
    }
}

/// What a base's products take on a device, for people.
pub(crate) fn precision(llama: &Llama) -> &'static str {
    match base::half_of(llama) {
        crate::kernels::cuda::Half::F16 => "f16 inputs",
        crate::kernels::cuda::Half::BF16 => "bf16 inputs",
    }
}

/// Bytes of a page of keys and values on a device.
pub(crate) fn page_bytes(llama: &Llama) -> usize {
    base::page_bytes(llama)
}

/// What a step gives, row-major.
#[derive(Debug, Default)]
pub(crate) struct Computed {
    /// `[sample, vocab]`
    pub(crate) logits: Vec<f32>,
    /// `[pool, hidden]`
    pub(crate) states: Vec<f32>,
    /// The token of the greatest logit of each row that wants no more; `None` where a logit is no number.
    pub(crate) greedy: Vec<Option<u32>>,
}

/// A base on a device, with its keys and values and the adapters that are there.
pub(crate) struct Network<G: Gpu> {
    llama: Arc<Llama>,
    size: Size,
    most: Most,
    /// Graphs by what they are of; before the memory that they use.
    graphs: LruCache<Run, G::Graph>,
    /// Until one failed.
    captures: bool,
    adapters: Adapters<G>,
    base: Base<G>,
    notes: Notes<G>,
    scratch: Scratch<G>,
    gpu: Arc<G>,
}

impl<G: Gpu> fmt::Debug for Network<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("gpu", &self.gpu).finish_non_exhaustive()
    }
}

impl<G: Gpu> Network<G> {
    /// Brings the base to the device and takes all memory that [`Size::plan`] names.
    pub(crate) fn new(gpu: Arc<G>, llama: Arc<Llama>, size: Size) -> Result<Self> {
        let plan = size.plan(&llama);
        let (needed, free) = (plan.total(), gpu.free_bytes()?);
        if needed > free {
            bail!(
                "the device has {free} bytes of free memory, and the plan takes {needed}: {} for the base, {} for keys and values, {} for adapters, {} for steps",
                plan.base,
                plan.kv,
                plan.adapters + plan.tables,
                plan.step
            );
        }
        if size.rank > run::MAX_RANK {
            bail!(
                "ranks of up to {} are served on a GPU, and --max-rank is {}",
                run::MAX_RANK,
                size.rank
            );
        }
        let most = size.most(&llama);
        let base = Base::new(&gpu, &llama, size.products, size.pages)?;
        let notes = Notes::new(&gpu, most)?;
        let scratch = Scratch::new(&gpu, &llama, &size)?;
        let shapes = [Shape::of(&base), Shape::of(&base)];
        Ok(Self {
            graphs: LruCache::new(run::GRAPHS),
            captures: true,
            adapters: Adapters::new(&gpu, size.room(&llama), shapes)?,
            llama,
            size,
            most,
            base,
            notes,
            scratch,
            gpu,
        })
    }

    /// The base on the host.
    pub(crate) fn llama(&self) -> &Llama {
        &self.llama
    }

    /// See [`Adapters::prepare`].
    pub(crate) fn prepare(
        &mut self,
        wanted: &[Arc<Adapter>],
        running: &[Arc<Adapter>],
    ) -> Result<(BTreeSet<Digest>, BTreeSet<Digest>)> {
        self.adapters.prepare(wanted, running)
    }

    /// The adapters that are there.
    pub(crate) fn on_device(&self) -> Arc<BTreeSet<Digest>> {
        self.adapters.arrived()
    }

    /// See [`Adapters::settle`].
    pub(crate) fn settle(&mut self) -> Result<bool> {
        self.adapters.settle()
    }

    /// Whether nothing can be computed any more.
    pub(crate) fn is_lost(&self) -> bool {
        self.gpu.wait().is_err()
    }

    /// Logits and hidden states of the wanted rows, and of the rows `greedy` (ascending, and not sampled) the greedy token, after
    /// putting every row's keys and values into their pages.
    pub(crate) fn forward(&mut self, step: &Step<'_>, greedy: &[u32]) -> Result<Computed> {
        let (rows, sequences) = (step.tokens.len(), step.sequences.len());
        let samples = step.sample.len() + greedy.len();
        step.wanted()?;
        if greedy.last().is_some_and(|last| *last as usize >= rows) {
            bail!("a step of {rows} rows has no rows {greedy:?}");
        }
        let most = self.most;
        if rows > self.size.rows || sequences > most.sequences || samples > most.samples {
            bail!(
                "a step of {rows} rows of {sequences} sequences with {samples} logits is larger than was planned"
            );
        }
        if rows == 0 {
            return Ok(Computed::default());
        }
        let (told, run, heads) = self.tell(step, greedy)?;
        let computed = self.notes.send(&told).and_then(|()| self.compute(run, &heads));
        // Whatever became of it: behind it, adapters may go, and pages are others'.
        self.gpu.wait()?;
        computed?;
        let Spec { vocab, hidden, .. } = *self.llama.spec();
        Ok(Computed {
            logits: self.scratch.logits(step.sample.len() * vocab)?,
            states: self.scratch.states(step.pool.len() * hidden)?,
            greedy: self.scratch.greedy(step.sample.len()..samples)?,
        })
    }

    /// The step as numbers, and what is run for it.
    fn tell(&mut self, step: &Step<'_>, greedy: &[u32]) -> Result<(Told, Run, Vec<OwnHead>)> {
        let mut told = Told { x: self.llama.embed(step)?, ..Told::default() };
        let longest = step.sequences.iter().map(|sequence| sequence.pages.len()).max();
        let each = longest.unwrap_or(1).next_power_of_two().max(run::LEAST_PAGES);
        if each > self.most.pages {
            bail!("a sequence of {longest:?} pages is longer than was planned");
        }
        let int = |number: usize| i32::try_from(number).expect("below 2^24");
        for (index, sequence) in step.sequences.iter().enumerate() {
            let positions = sequence.position..sequence.position + sequence.rows.len();
            told.positions.extend(positions.map(int));
            told.sequences.extend(sequence.rows.clone().map(|_| int(index)));
            told.pages.extend(sequence.pages.iter().map(|page| int(*page as usize)));
            told.pages.resize((index + 1) * each, 0);
        }
        let parts = step.lora.groups().map(|(_, adapter)| adapter.parts().count()).max();
        let parts = parts.unwrap_or(0).max(1);
        if parts > self.most.parts {
            bail!("a mix of {parts} adapters is larger than was planned");
        }
        let int_row = |row: &u32| i32::try_from(*row).expect("below 2^24");
        // Logits that are given away come first.
        told.sampled = step.sample.iter().chain(greedy).map(int_row).collect();
        told.pooled = step.pool.iter().map(int_row).collect();
        let heads = self.tell_adapters(step, parts, &mut told)?;
        let rows = step.tokens.len();
        let run = Run {
            rows,
            samples: told.sampled.len(),
            pooled: step.pool.len(),
            each,
            parts: if step.lora.is_empty() { 0 } else { parts },
        };
        Ok((told, run, heads))
    }

    /// Which rows go through which adapters; and the runs of sampled rows with a head of their own.
    fn tell_adapters(
        &mut self,
        step: &Step<'_>,
        parts: usize,
        told: &mut Told,
    ) -> Result<Vec<OwnHead>> {
        let rows = step.tokens.len();
        told.slots = vec![-1; rows * parts];
        told.weights = vec![1.0; rows * parts];
        // None of them goes for another.
        let all = step.lora.shared_groups().flat_map(|(_, adapter)| Adapter::shared_parts(adapter));
        let of_step: BTreeSet<_> = all.map(|(part, _)| part.digest()).collect();
        for (own, adapter) in step.lora.shared_groups() {
            for (at, (part, weight)) in Adapter::shared_parts(adapter).enumerate() {
                let slot = self.adapters.slot(part, &of_step)?;
                for row in own.clone() {
                    told.slots[row * parts + at] = slot;
                    told.weights[row * parts + at] = weight;
                }
            }
        }
        for row in &told.sampled {
            let row = usize::try_from(*row).expect("a row");
            told.sample_slots.extend(&told.slots[row * parts..(row + 1) * parts]);
            told.sample_weights.extend(&told.weights[row * parts..(row + 1) * parts]);
        }
        Ok(self.own_heads(step, told))
    }

    /// The runs of sampled rows whose adapter brings a head of its own.
    fn own_heads(&self, step: &Step<'_>, told: &mut Told) -> Vec<OwnHead> {
        let mut heads: Vec<OwnHead> = Vec::new();
        for (place, row) in told.sampled.iter().enumerate() {
            let row = usize::try_from(*row).expect("a row");
            let Some(adapter) = step.lora.adapter(row) else { continue };
            let head = self.adapters.head(adapter.digest());
            let Some(maps) = head else { continue };
            match heads.last_mut() {
                Some(last) if last.maps == maps && last.samples.end == place => {
                    last.samples.end += 1;
                }
                _ => heads.push(OwnHead { samples: place..place + 1, maps }),
            }
        }
        let count = |head: &OwnHead| i32::try_from(head.samples.len()).expect("few");
        told.runs = heads.iter().map(count).collect();
        heads
    }
}

/// Sampled rows whose adapter brings a head of its own.
#[derive(Debug)]
struct OwnHead {
    samples: std::ops::Range<usize>,
    maps: (Encoding, LinearMaps),
}
