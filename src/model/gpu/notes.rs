//! What a step tells the device: which rows there are, whose they are, and where their keys and values lie.
//!
//! All of it lies at the same addresses in every step, so that a captured step finds it.

use std::{ops::Range, sync::Arc};

use candle_core::Result;

use crate::kernels::cuda::{Gpu, Places, Region, Rows, Slice, Slots, Staging, bytes_of};

/// Where the numbers of all rows, of those that are sampled, and of those that are pooled are; behind them those of runs of sampled
/// rows with a head of their own, of which there are no more than rows.
const ALL: usize = 0;
const SAMPLED: usize = 1;
const POOLED: usize = 2;
const RUNS: usize = 3;

/// The most of everything.
#[derive(Clone, Copy, Debug)]
pub(super) struct Most {
    /// Rows of a step.
    pub(super) rows: usize,
    /// Rows whose logits are wanted.
    pub(super) samples: usize,
    /// Sequences of a step.
    pub(super) sequences: usize,
    /// Pages of a sequence.
    pub(super) pages: usize,
    /// Adapters of a row.
    pub(super) parts: usize,
    /// Width of the residual stream.
    pub(super) hidden: usize,
}

/// A step as numbers.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) positions: Vec<i32>,
    pub(super) sequences: Vec<i32>,
    /// `[rows, parts]`, and how much of each.
    pub(super) slots: Vec<i32>,
    pub(super) weights: Vec<f32>,
    /// Rows whose logits are wanted, and their adapters.
    pub(super) sampled: Vec<i32>,
    pub(super) sample_slots: Vec<i32>,
    pub(super) sample_weights: Vec<f32>,
    /// Rows whose hidden states are wanted.
    pub(super) pooled: Vec<i32>,
    /// Rows of each run with a head of its own.
    pub(super) runs: Vec<i32>,
    /// `[sequences, each]`
    pub(super) pages: Vec<i32>,
    /// `[rows, hidden]`
    pub(super) x: Vec<f32>,
}

/// Where the device finds it.
#[derive(Debug)]
pub(super) struct Notes<G: Gpu> {
    hidden: usize,
    memory: Region<G>,
    staging: Staging<G>,
    counts: Slice<i32>,
    positions: Slice<i32>,
    sequences: Slice<i32>,
    slots: Slice<i32>,
    weights: Slice<f32>,
    sampled: Slice<i32>,
    sample_slots: Slice<i32>,
    sample_weights: Slice<f32>,
    pooled: Slice<i32>,
    pages: Slice<i32>,
    pub(super) x: Slice<f32>,
}

impl Most {
    fn counts(self) -> usize {
        RUNS + self.samples
    }

    /// Bytes that a step's notes take.
    pub(super) fn bytes(self) -> usize {
        let Self { rows, samples, sequences, pages, parts, hidden } = self;
        let ints = [self.counts(), rows, rows, rows * parts, rows * parts, rows];
        let sampled = [samples, samples * parts, samples * parts];
        let ints: usize = ints.into_iter().chain(sampled).map(bytes_of::<i32>).sum();
        ints + bytes_of::<i32>(sequences * pages) + bytes_of::<f32>(rows * hidden)
    }
}

impl<G: Gpu> Notes<G> {
    /// Room for the most.
    pub(super) fn new(gpu: &Arc<G>, most: Most) -> Result<Self> {
        let Most { rows, samples, sequences, pages, parts, hidden } = most;
        let mut memory = Region::new(gpu, most.bytes())?;
        Ok(Self {
            staging: Staging::new(gpu, most.bytes())?,
            counts: memory.take(most.counts()),
            positions: memory.take(rows),
            sequences: memory.take(rows),
            slots: memory.take(rows * parts),
            weights: memory.take(rows * parts),
            sampled: memory.take(samples),
            sample_slots: memory.take(samples * parts),
            sample_weights: memory.take(samples * parts),
            pooled: memory.take(rows),
            pages: memory.take(sequences * pages),
            x: memory.take(rows * hidden),
            hidden,
            memory,
        })
    }

    /// Sends a step.
    pub(super) fn send(&mut self, told: &Told) -> Result<()> {
        let all = self.memory.all();
        let bytes = self.staging.fill()?;
        let place = |slice: u64| usize::try_from(slice - all.address()).expect("within it");
        let count = |rows: &[i32]| i32::try_from(rows.len()).expect("few");
        let mut counts = vec![count(&told.positions), count(&told.sampled), count(&told.pooled)];
        counts.extend(&told.runs);
        for (numbers, to) in [
            (&counts, self.counts),
            (&told.positions, self.positions),
            (&told.sequences, self.sequences),
            (&told.slots, self.slots),
            (&told.sampled, self.sampled),
            (&told.sample_slots, self.sample_slots),
            (&told.pooled, self.pooled),
            (&told.pages, self.pages),
        ] {
            put(bytes, place(to.address()), to.len(), numbers.iter().map(|n| n.to_le_bytes()));
        }
        for (numbers, to) in [
            (&told.weights, self.weights),
            (&told.sample_weights, self.sample_weights),
            (&told.x, self.x),
        ] {
            put(bytes, place(to.address()), to.len(), numbers.iter().map(|n| n.to_le_bytes()));
        }
        let (pages, x) = (place(self.pages.address()), place(self.x.address()));
        let ints: Range<usize> = 0..pages;
        for bytes in [ints, pages..pages + told.pages.len() * 4, x..x + told.x.len() * 4] {
            if !bytes.is_empty() {
                self.staging.send(bytes, all)?;
            }
        }
        Ok(())
    }

    /// Width of the residual stream.
    pub(super) fn hidden(&self) -> usize {
        self.hidden
    }

    /// All rows of the step.
    pub(super) fn rows(&self, room: usize) -> Rows {
        Rows { count: self.counts.part(ALL..ALL + 1), room }
    }

    /// The rows that are sampled, side by side.
    pub(super) fn samples(&self, room: usize) -> Rows {
        Rows { count: self.counts.part(SAMPLED..SAMPLED + 1), room }
    }

    /// Which rows of the step those are.
    pub(super) fn sampled(&self) -> Slice<i32> {
        self.sampled
    }

    /// The rows that are pooled, side by side.
    pub(super) fn pools(&self, room: usize) -> Rows {
        Rows { count: self.counts.part(POOLED..POOLED + 1), room }
    }

    /// Which rows of the step those are.
    pub(super) fn pooled(&self) -> Slice<i32> {
        self.pooled
    }

    /// A run of sampled rows with a head of its own.
    pub(super) fn run(&self, run: usize, room: usize) -> Rows {
        Rows { count: self.counts.part(RUNS + run..RUNS + run + 1), room }
    }

    /// The adapters of rows.
    pub(super) fn slots(&self, parts: usize) -> Slots {
        Slots { of_rows: self.slots, weights: self.weights, parts }
    }

    /// The adapters of sampled rows.
    pub(super) fn sample_slots(&self, parts: usize) -> Slots {
        Slots { of_rows: self.sample_slots, weights: self.sample_weights, parts }
    }

    /// Where keys and values are.
    pub(super) fn places(&self, each: usize) -> Places {
        let Self { pages, sequences, positions, .. } = self;
        Places { pages: *pages, each, sequences: *sequences, positions: *positions }
    }
}

fn put(bytes: &mut [u8], at: usize, room: usize, numbers: impl ExactSizeIterator<Item = [u8; 4]>) {
    assert!(numbers.len() <= room, "{} numbers where {room} have room", numbers.len());
    let to = bytes[at..at + numbers.len() * 4].as_chunks_mut::<4>().0;
    to.iter_mut().zip(numbers).for_each(|(to, number)| *to = number);
}
