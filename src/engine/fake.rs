//! A network that can be computed by hand, for tests: what it answers depends on every token, position, page and
//! adapter that it should depend on.

use std::{
    collections::{BTreeMap, BTreeSet, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use super::{
    guide::{Allowed, Guide, Lost, TokenSet},
    job::Sampling,
    sampler::{Limits, Sampler},
    step::{Batch, Brought, Forward, Results, Side},
};
use crate::{
    lora::{Adapter, Digest, Extras, Lease, Manifest, Matrices, Sites, ZeroBase},
    model::PAGE,
};

/// Size of the vocabulary.
pub(crate) const VOCAB: usize = 32;
/// Numbers in a hidden state.
pub(crate) const HIDDEN: usize = 5;
/// Most positions of one sequence.
pub(crate) const CONTEXT: usize = 512;

/// A step that holds this token is an error.
pub(crate) const FAILS: u32 = 29;
/// A step that holds this token is a panic.
pub(crate) const PANICS: u32 = 30;
/// A row of this token has no numbers.
pub(crate) const OVERFLOWS: u32 = 31;

/// Logits after `tokens` through `adapter`: a hash of all of it.
pub(crate) fn logits(tokens: &[u32], adapter: Option<Digest>) -> Vec<f32> {
    spread(&entries(tokens, adapter))
}

/// Hidden states at all of `tokens`.
pub(crate) fn states(tokens: &[u32], adapter: Option<Digest>) -> Vec<Vec<f32>> {
    entries(tokens, adapter).into_iter().map(state).collect()
}

fn entries(tokens: &[u32], adapter: Option<Digest>) -> Vec<u64> {
    let mut entries: Vec<u64> = Vec::new();
    for (position, token) in tokens.iter().enumerate() {
        entries.push(entry(*token, position, adapter, entries.last().copied()));
    }
    entries
}

/// Numbers that do not add up exactly: another order has other bits.
fn state(entry: u64) -> Vec<f32> {
    let bytes = entry.to_le_bytes();
    let numbers = bytes.windows(3).map(|byte| {
        f32::from(byte[0]) * f32::from(byte[1]).exp2().min(1e20) - f32::from(byte[2]) / 3.0
    });
    numbers.take(HIDDEN).collect()
}

/// What a position leaves in its page: like a network's, it depends on all before it.
fn entry(token: u32, position: usize, adapter: Option<Digest>, before: Option<u64>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (token, position, adapter, before).hash(&mut hasher);
    hasher.finish()
}

/// Logits from -4 to 4 over all ordinary tokens; those that make trouble are never drawn.
fn spread(entries: &[u64]) -> Vec<f32> {
    let logit = |id: u32| {
        let mut hasher = DefaultHasher::new();
        (id, entries).hash(&mut hasher);
        let byte = hasher.finish().to_le_bytes()[0];
        if id < FAILS { f32::from(byte) / 32.0 - 4.0 } else { f32::NEG_INFINITY }
    };
    (0..u32::try_from(VOCAB).unwrap()).map(logit).collect()
}

/// A guide whose ways are hashes of all that was said. Some ways end, and in some it is lost.
#[derive(Clone, Debug)]
pub(crate) struct Maze {
    seed: u64,
    trail: Vec<u32>,
    /// How long it thinks, now and then.
    pace: Duration,
}

impl Maze {
    pub(crate) fn new(seed: u64, pace: Duration) -> Self {
        Self { seed, trail: Vec::new(), pace }
    }
}

impl Guide for Maze {
    fn after(&mut self, token: Option<u32>) -> Result<Allowed, Lost> {
        self.trail.extend(token);
        let mut hasher = DefaultHasher::new();
        (self.seed, &self.trail).hash(&mut hasher);
        let [way, turn, end, rest @ ..] = hasher.finish().to_le_bytes();
        if rest[0] < 128 {
            std::thread::park_timeout(self.pace);
        }
        match way {
            0..8 => Ok(Allowed::Nothing),
            8..12 => Err(Lost),
            _ => {
                let open = u32::from_le_bytes([rest[1], rest[2], rest[3], rest[4]]);
                let words = vec![open | 1 << (u32::from(turn) % FAILS)];
                Ok(Allowed::Tokens(TokenSet { words, may_end: end < 64 }))
            }
        }
    }
}

/// What the network has seen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// Steps it has computed or begun.
    pub(crate) steps: u64,
    /// Rows of the largest step.
    pub(crate) rows: usize,
    /// Adapters of the most mixed step.
    pub(crate) adapters: usize,
    /// Logit rows of the step with most of them.
    pub(crate) sampled: usize,
    /// Pooled rows of the step with most of them.
    pub(crate) pooled: usize,
}

/// A test's view of the network: what it has seen, and whether it may go on.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    state: Mutex<Watched>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct Watched {
    seen: Seen,
    /// The step after so many waits.
    halt: Option<u64>,
}

/// Longer than anything here takes; reached only by a test that fails.
const LONG: Duration = Duration::from_mins(1);

impl Watch {
    /// What it has seen so far.
    pub(crate) fn seen(&self) -> Seen {
        self.state.lock().unwrap().seen
    }

    /// Lets it begin so many more steps and finish all but the last of them, which waits for [`Self::release`].
    pub(crate) fn halt_in(&self, steps: u64) {
        let mut state = self.state.lock().unwrap();
        state.halt = Some(state.seen.steps + steps);
        drop(state);
        self.news.notify_all();
    }

    /// Returns when it stands in the step that [`Self::halt_in`] told.
    pub(crate) fn await_halt(&self) {
        let goes_on = |state: &mut Watched| state.halt.is_some_and(|halt| state.seen.steps < halt);
        let waited = self.news.wait_timeout_while(self.state.lock().unwrap(), LONG, goes_on);
        assert!(!waited.unwrap().1.timed_out(), "the step was never begun");
    }

    /// Lets it go on.
    pub(crate) fn release(&self) {
        self.state.lock().unwrap().halt = None;
        self.news.notify_all();
    }

    fn note(&self, batch: &Batch<'_>) {
        let mut state = self.state.lock().unwrap();
        let seen = &mut state.seen;
        seen.steps += 1;
        seen.rows = seen.rows.max(batch.tokens.len());
        seen.adapters = seen.adapters.max(batch.adapters.len());
        seen.sampled = seen.sampled.max(batch.sample.len());
        seen.pooled = seen.pooled.max(batch.pool.len());
        self.news.notify_all();
        let halted = |state: &mut Watched| state.halt.is_some_and(|halt| halt <= state.seen.steps);
        drop(self.news.wait_timeout_while(state, LONG, halted).unwrap());
    }
}

/// The network with its KV memory.
#[derive(Debug)]
pub(crate) struct Fake {
    /// What was written at each place of each page.
    kv: Vec<[u64; PAGE]>,
    /// Adapters that have room beside each other, where they have to be brought.
    room: Option<usize>,
    /// Adapters that steps may run through then.
    there: Vec<Digest>,
    /// Those on their way, and the steps that they still take.
    coming: Vec<(Digest, u32)>,
    watch: Arc<Watch>,
}

impl Fake {
    /// A network with so many pages, and a view of it.
    pub(crate) fn new(pages: usize) -> (Self, Arc<Watch>) {
        Self::with_room(pages, None)
    }

    /// And with room for so many adapters, which have to be brought.
    pub(crate) fn with_room(pages: usize, room: Option<usize>) -> (Self, Arc<Watch>) {
        let (watch, kv) = (Arc::default(), vec![[0; PAGE]; pages]);
        let own = Arc::clone(&watch);
        (Self { kv, room, there: Vec::new(), coming: Vec::new(), watch: own }, watch)
    }
}

/// The adapter of each row; rows must be sorted, and each adapter's together.
fn adapters(batch: &Batch<'_>) -> Vec<Option<Digest>> {
    let mut rows = vec![None; batch.tokens.len()];
    let mut end = batch.adapters.first().map_or(0, |(range, _)| range.start);
    let mut digests = BTreeSet::new();
    for (range, adapter) in &batch.adapters {
        assert_eq!(range.start, end, "base rows first, then adapters without a gap");
        assert!(digests.insert(adapter.digest()), "one range for each adapter");
        rows[range.clone()].fill(Some(adapter.digest()));
        end = range.end;
    }
    assert!(batch.adapters.is_empty() || end == rows.len());
    rows
}

impl Forward for Fake {
    fn vocab(&self) -> usize {
        VOCAB
    }

    fn hidden(&self) -> usize {
        HIDDEN
    }

    fn context(&self) -> usize {
        CONTEXT
    }

    fn side(&self) -> Side {
        Side::Device
    }

    /// As a device with room for few adapters would, which takes some steps for each.
    fn prepare(
        &mut self,
        wanted: &[Arc<Adapter>],
        running: &[Arc<Adapter>],
    ) -> candle_core::Result<Brought> {
        let Some(most) = self.room else { return Ok(Brought::default()) };
        self.coming.iter_mut().for_each(|(_, steps)| *steps -= 1);
        while self.coming.first().is_some_and(|(_, steps)| *steps == 0) {
            self.there.push(self.coming.remove(0).0);
        }
        let mut kept: BTreeSet<_> = running.iter().map(|adapter| adapter.digest()).collect();
        for digest in wanted.iter().map(|adapter| adapter.digest()) {
            // Who is first in line goes for nobody behind it, or nobody would ever come in.
            kept.insert(digest);
            if self.there.contains(&digest) || self.coming.iter().any(|(one, _)| *one == digest) {
                continue;
            }
            let room = |fake: &Self| fake.there.len() + fake.coming.len() < most;
            if !room(self)
                && let Some(gone) = self.there.iter().position(|one| !kept.contains(one))
            {
                self.there.remove(gone);
            }
            if room(self) {
                self.coming.push((digest, 2));
            }
        }
        let there = Some(self.there.iter().copied().collect());
        Ok(Brought { there, ..Brought::default() })
    }

    fn settle(&mut self) -> candle_core::Result<bool> {
        let coming = (!self.coming.is_empty()).then(|| self.coming.remove(0));
        Ok(coming.map(|(digest, _)| self.there.push(digest)).is_some())
    }

    fn forward(&mut self, batch: Batch<'_>) -> candle_core::Result<Results> {
        self.watch.note(&batch);
        let adapters = adapters(&batch);
        let is_there = |(_, adapter): &(_, Arc<Adapter>)| {
            self.room.is_none() || self.there.contains(&adapter.digest())
        };
        assert!(batch.adapters.iter().all(is_there), "nobody runs before its adapter is there");
        let (mut logits, mut states, mut greedy) = (Vec::new(), Vec::new(), Vec::new());
        let mut next = 0;
        for sequence in &batch.sequences {
            assert_eq!(sequence.rows.start, next, "sequences without a gap");
            next = sequence.rows.end;
            for row in sequence.rows.clone() {
                let (token, position) =
                    (batch.tokens[row], sequence.position + row - sequence.rows.start);
                let place = |at: usize| (sequence.pages[at / PAGE] as usize, at % PAGE);
                let before = position.checked_sub(1).map(place);
                let before = before.map(|(page, at)| self.kv[page][at]);
                let (page, at) = place(position);
                self.kv[page][at] = entry(token, position, adapters[row], before);
                let row = u32::try_from(row).unwrap();
                if batch.sample.contains(&row) || batch.greedy.contains(&row) {
                    let read = |at: usize| self.kv[place(at).0][place(at).1];
                    let entries: Vec<_> = (0..=position).map(read).collect();
                    let bad = token == OVERFLOWS;
                    let own = if bad { vec![f32::NAN; VOCAB] } else { spread(&entries) };
                    if batch.greedy.contains(&row) {
                        assert!(!batch.sample.contains(&row), "one or the other");
                        let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
                        let mut sampler = Sampler::new(sampling, &[]);
                        greedy.push(sampler.draw(&own, &Limits::default()).ok());
                    } else {
                        logits.extend(own);
                    }
                }
                if batch.pool.contains(&row) {
                    let bad = token == OVERFLOWS;
                    let own = state(self.kv[page][at]);
                    states.extend(if bad { vec![f32::INFINITY; HIDDEN] } else { own });
                }
            }
        }
        if batch.tokens.iter().any(|token| [PANICS, FAILS].contains(token)) {
            // It may leave anything where its rows are, and nowhere else.
            for sequence in &batch.sequences {
                for position in (sequence.position..).take(sequence.rows.len()) {
                    self.kv[sequence.pages[position / PAGE] as usize][position % PAGE] = u64::MAX;
                }
            }
        }
        assert!(!batch.tokens.contains(&PANICS), "as the test wished");
        if batch.tokens.contains(&FAILS) {
            candle_core::bail!("as the test wished");
        }
        Ok(Results { logits, states, greedy })
    }
}

/// The digest of [`adapter`].
pub(crate) fn digest(id: u8) -> Digest {
    Digest::of(&[id], &[])
}

/// An adapter that is only a digest.
pub(crate) fn adapter(id: u8) -> Arc<Adapter> {
    let manifest = Manifest {
        deltas: BTreeMap::new(),
        norms: BTreeMap::new(),
        biases: BTreeMap::new(),
        replaced: BTreeMap::new(),
        copies: Vec::new(),
        rank: 0,
        targets: Vec::new(),
        extras: Extras::default(),
    };
    let base = ZeroBase(Sites {
        layers: 0,
        hidden: 1,
        attention: 1,
        kv: 1,
        ffn: 1,
        vocab: VOCAB,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
    });
    Arc::new(Adapter::build(digest(id), &manifest, &base, Matrices::Native).unwrap())
}

/// A lease of it that tells nobody.
pub(crate) fn lease(id: u8) -> Lease {
    Lease::new(adapter(id), || {})
}
