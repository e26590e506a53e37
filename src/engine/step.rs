//! A plan as rows for the network, and the network as the worker sees it.

use std::{collections::BTreeSet, ops::Range, sync::Arc};

use candle_core::{Device, Tensor};

use super::{
    answer::Answer,
    scheduler::Scheduler,
    sequence::{Part, SequenceId},
};
use crate::{
    lora::{Adapter, Digest, LoraBatch},
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

    /// Where it computes.
    fn side(&self) -> Side {
        Side::Host
    }

    /// Whether it computes a few rows of an answer in little more time than one, so that tokens can be guessed.
    fn takes_guesses(&self) -> bool {
        true
    }

    /// Has adapters brought to where steps run through them, beside what is computed: the first of `wanted`, which wait, as long as
    /// there is room beside those that `running` need.
    fn prepare(
        &mut self,
        wanted: &[Arc<Adapter>],
        running: &[Arc<Adapter>],
    ) -> candle_core::Result<Brought> {
        let _ = (wanted, running);
        Ok(Brought::default())
    }

    /// Whether it failed so that no step can be computed any more.
    fn is_lost(&self) -> bool {
        false
    }

    /// The adapters that are on the device, where it computes on one.
    fn on_device(&self) -> Arc<BTreeSet<Digest>> {
        Arc::default()
    }

    /// Waits until one more adapter is there; false where none is on its way.
    fn settle(&mut self) -> candle_core::Result<bool> {
        Ok(false)
    }

    /// What the batch wants of its rows. An error may spoil the places of this batch's rows and no others:
    /// pages hold what other sequences use too.
    fn forward(&mut self, batch: Batch<'_>) -> candle_core::Result<Results>;
}

/// What has become of the adapters that were wanted.
#[derive(Debug, Default)]
pub(crate) struct Brought {
    /// Those that are there; `None` where all always are.
    pub(crate) there: Option<BTreeSet<Digest>>,
    /// Those that cannot be brought.
    pub(crate) lost: BTreeSet<Digest>,
}

/// What a step gives beside keys and values, row-major.
#[derive(Debug, Default)]
pub(crate) struct Results {
    /// `[batch.sample, vocab]`
    pub(crate) logits: Vec<f32>,
    /// `[batch.pool, hidden]`
    pub(crate) states: Vec<f32>,
    /// `[batch.greedy]`: the token of the greatest logit, or `None` where a logit is no number.
    pub(crate) greedy: Vec<Option<u32>>,
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
    /// Rows of which the greedy token alone is wanted, ascending; none of them is in `sample`.
    pub(crate) greedy: Vec<u32>,
    /// Rows whose hidden states are pooled, ascending.
    pub(crate) pool: Vec<u32>,
}

/// Where a network computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Where answers are: adapters need not be brought there, and logits need not be sent.
    Host,
    /// On a device: adapters are brought there, and greedy tokens found there, so that their logits can stay.
    Device,
}

impl<'a> Batch<'a> {
    /// Lays out `parts`, which are sorted by adapter.
    pub(crate) fn new(
        parts: &[Part],
        scheduler: &'a Scheduler,
        side: Side,
        answer: impl Fn(SequenceId) -> &'a Answer,
    ) -> Self {
        let mut batch = Self {
            tokens: Vec::new(),
            sequences: Vec::with_capacity(parts.len()),
            adapters: Vec::new(),
            sample: Vec::new(),
            greedy: Vec::new(),
            pool: Vec::new(),
        };
        for part in parts {
            batch.push(part, answer(part.id), scheduler.table(part.id), side);
        }
        batch
    }

    fn push(&mut self, part: &Part, answer: &Answer, pages: &'a [u32], side: Side) {
        let start = self.tokens.len();
        self.tokens.extend(answer.tokens(part));
        let rows = start..self.tokens.len();
        let row = |position| narrow(start + position - part.rows.start);
        if answer.is_greedy(part, side) {
            self.greedy.extend(part.sampled.clone().map(row));
        } else {
            self.sample.extend(part.sampled.clone().map(row));
        }
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
        Ok(Results { logits: flat(&logits)?, states: flat(&states)?, greedy: Vec::new() })
    }
}

#[cfg(any(test, feature = "cuda"))]
impl<G: crate::model::gpu::Gpu> Forward for crate::model::gpu::Network<G> {
    fn vocab(&self) -> usize {
        self.llama().spec().vocab
    }

    fn hidden(&self) -> usize {
        self.llama().spec().hidden
    }

    fn context(&self) -> usize {
        self.llama().spec().context
    }

    fn side(&self) -> Side {
        Side::Device
    }

    /// The steps that are captured have one row of each answer.
    fn takes_guesses(&self) -> bool {
        false
    }

    fn prepare(
        &mut self,
        wanted: &[Arc<Adapter>],
        running: &[Arc<Adapter>],
    ) -> candle_core::Result<Brought> {
        let (there, lost) = Self::prepare(self, wanted, running)?;
        Ok(Brought { there: Some(there), lost })
    }

    fn is_lost(&self) -> bool {
        Self::is_lost(self)
    }

    fn on_device(&self) -> Arc<BTreeSet<Digest>> {
        Self::on_device(self)
    }

    fn settle(&mut self) -> candle_core::Result<bool> {
        Self::settle(self)
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
        let computed = Self::forward(self, &step, &batch.greedy)?;
        let crate::model::gpu::Computed { logits, states, greedy } = computed;
        Ok(Results { logits, states, greedy })
    }
}
