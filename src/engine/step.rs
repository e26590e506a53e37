//! A plan as rows for the network, and the network as the worker sees it.

use std::{ops::Range, sync::Arc};

use candle_core::{Device, Tensor};

use super::{
    answer::Answer,
    scheduler::Scheduler,
    sequence::{Part, SequenceId},
};
use crate::{
    lora::{Adapter, LoraBatch},
    model::{Kv, KvType, Llama, Outputs, SequenceRows, Step},
};

/// What the worker asks of a network and its KV memory. The tests have one that can be computed by hand.
pub(crate) trait Forward: Send + 'static {
    /// Size of the vocabulary.
    fn vocab(&self) -> usize;

    /// Numbers in a hidden state.
    fn hidden(&self) -> usize;

    /// Most positions of one sequence.
    fn context(&self) -> usize;

    /// What the batch wants of its rows. An error may spoil the places of this batch's rows and no others:
    /// pages hold what other sequences use too.
    fn forward(&mut self, batch: Batch<'_>) -> candle_core::Result<Results>;
}

/// What a step gives beside keys and values, row-major.
#[derive(Debug, Default)]
pub(crate) struct Results {
    /// `[batch.sample, vocab]`
    pub(crate) logits: Vec<f32>,
    /// `[batch.pool, hidden]`
    pub(crate) states: Vec<f32>,
}

/// The rows of one step, flat: part after part, those of one adapter together.
#[derive(Debug)]
pub(crate) struct Batch<'a> {
    /// Token of each row.
    pub(crate) tokens: Vec<u32>,
    /// Whose rows are where, and where their keys and values lie.
    pub(crate) sequences: Vec<SequenceRows<'a>>,
    /// Rows of each adapter; those in no range are the base's.
    pub(crate) adapters: Vec<(Range<usize>, Arc<Adapter>)>,
    /// Rows that want logits, ascending.
    pub(crate) sample: Vec<u32>,
    /// Rows whose hidden states are pooled, ascending.
    pub(crate) pool: Vec<u32>,
}

impl<'a> Batch<'a> {
    /// Lays out `parts`, which are sorted by adapter.
    pub(crate) fn new(
        parts: &[Part],
        scheduler: &'a Scheduler,
        answer: impl Fn(SequenceId) -> &'a Answer,
    ) -> Self {
        let mut batch = Self {
            tokens: Vec::new(),
            sequences: Vec::with_capacity(parts.len()),
            adapters: Vec::new(),
            sample: Vec::new(),
            pool: Vec::new(),
        };
        for part in parts {
            batch.push(part, answer(part.id), scheduler.table(part.id));
        }
        batch
    }

    fn push(&mut self, part: &Part, answer: &Answer, pages: &'a [u32]) {
        let start = self.tokens.len();
        self.tokens.extend_from_slice(answer.tokens(part.rows.clone()));
        let rows = start..self.tokens.len();
        let row = |position| narrow(start + position - part.rows.start);
        self.sample.extend(part.sampled.clone().map(row));
        self.pool.extend(part.pooled.clone().map(row));
        if let Some(adapter) = answer.adapter() {
            match self.adapters.last_mut() {
                Some((range, last)) if last.digest() == adapter.digest() => range.end = rows.end,
                _ => self.adapters.push((rows.clone(), Arc::clone(adapter))),
            }
        }
        self.sequences.push(SequenceRows { rows, position: part.rows.start, pages });
    }
}

/// Rows and positions are below the context, and that is below 2^32.
fn narrow(index: usize) -> u32 {
    u32::try_from(index).expect("a context is below 2^32")
}

fn flat(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

/// The real network with its KV memory.
#[derive(Debug)]
pub(crate) struct Network {
    llama: Arc<Llama>,
    kv: Kv,
}

impl Network {
    /// Takes the memory of `pages` KV pages.
    pub(crate) fn new(llama: Arc<Llama>, kv: KvType, pages: usize) -> candle_core::Result<Self> {
        let kv = Kv::new(llama.spec(), kv, pages, &Device::Cpu)?;
        Ok(Self { llama, kv })
    }
}

impl Forward for Network {
    fn vocab(&self) -> usize {
        self.llama.spec().vocab
    }

    fn hidden(&self) -> usize {
        self.llama.spec().hidden
    }

    fn context(&self) -> usize {
        self.llama.spec().context
    }

    fn forward(&mut self, batch: Batch<'_>) -> candle_core::Result<Results> {
        let lora = LoraBatch::new(batch.adapters);
        let step = Step {
            tokens: &batch.tokens,
            sequences: &batch.sequences,
            lora: &lora,
            sample: &batch.sample,
            pool: &batch.pool,
        };
        let Outputs { logits, states } = self.llama.forward(&step, &mut self.kv)?;
        Ok(Results { logits: flat(&logits)?, states: flat(&states)? })
    }
}
