//! Who computes what in the next step. Pure: no thread, no clock, no tensor.
//!
//! A step is [`Scheduler::plan`], the computation, then [`Scheduler::commit`] for each part. Prefill and decode are one
//! notion: a sequence has pending tokens, and a plan takes rows of them. What must hold, and is tested below:
//!
//! - A plan has at most `step_tokens` rows.
//! - The sequence admitted longest ago always goes on: pages are taken from those admitted after a sequence, never
//!   from those before, and one sequence never needs more pages than there are.
//! - Lanes that want more than there is get the same of it, whatever their requests look like: see [`Counters`]. The lane that
//!   has been given least is first where somebody is admitted, and where rows are given to prompts.
//! - So everybody ends. Those preempted go first, nobody is admitted past them, and the ones before them only get fewer.
//!   Those that find no slot are overtaken a bounded number of times ([`Waiting`]). Those that give way to a lane that has less
//!   than its share are the newest of lanes that have more than theirs; the oldest of each lane goes on, so all do in time.
//!
//! Virtual token counters alone decide who is admitted next and not when: a lane whose long answers have all places lets
//! another wait until one ends. So it gives up what exceeds its share, at the price of what is computed again: little where
//! prefixes are kept, since full pages are found again, and only where another is admitted for it. To keep places free for
//! newcomers instead would cost a lane that is alone a part of its batch.

mod admission;
mod prompts;

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Settings,
    counters::Counters,
    inbox::Jobs,
    job::Lane,
    pages::Pages,
    prefix::Key,
    sequence::{Part, Sequence, SequenceId},
    slots::Slots,
    waiting::Waiting,
};
use crate::lora::Digest;

/// Logit rows of one step beyond one for each sequence: they belong to prompts that are scored.
///
/// 64 rows of a vocabulary of 50,000 are 13 MB.
pub(crate) const SCORED_ROWS: usize = 64;

/// Rows of a prompt beside few sequences that are being answered.
///
/// While others are answered, a prompt takes no more rows of a step than they do together, or than this, so that their next
/// tokens come after about twice the time and not after a whole chunk; fewer than eight wait longer, or a prompt beside one
/// answer would take for ever. Several prompts take so many each: a short one need not wait for a long one. But a lane that has
/// been given less than another whose sequences run takes all rows at once that it is behind by.
const PROMPT_ROWS: usize = 8;

/// Sequences, and what they share: rows, pages and slots.
#[derive(Debug)]
pub(crate) struct Scheduler {
    /// Most rows of a step.
    step_tokens: usize,
    /// Most sequences that run; not above `step_tokens`.
    max_running: usize,
    pages: Pages,
    slots: Slots,
    /// In the order of admission.
    running: Vec<Sequence>,
    waiting: Waiting,
    counters: Counters,
}

/// What one step computes.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Rows, sorted by adapter with the base first; one part for a sequence.
    pub(crate) parts: Vec<Part>,
    /// Sequences that lost their pages or their place to others.
    pub(crate) preempted: usize,
    /// Some sequence found no page: nobody new may come in.
    crowded: bool,
}

impl Plan {
    /// All rows.
    pub(crate) fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.rows.len()).sum()
    }

    /// Whether the step holds decodes beside prompts, and at least `rows` rows of at least `adapters` adapters.
    pub(crate) fn is_mixed(&self, rows: usize, adapters: usize) -> bool {
        let mut of_adapters: BTreeMap<_, usize> = BTreeMap::new();
        for part in &self.parts {
            if let Some(adapter) = part.adapter {
                *of_adapters.entry(adapter).or_default() += part.rows.len();
            }
        }
        of_adapters.len() >= adapters
            && of_adapters.values().sum::<usize>() >= rows
            && self.parts.iter().any(Part::is_decode)
            && !self.parts.iter().all(Part::is_decode)
    }

    fn holds(&self, id: SequenceId) -> bool {
        self.parts.iter().any(|part| part.id == id)
    }
}

impl Scheduler {
    /// Nothing to do yet.
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            step_tokens: settings.step_tokens,
            max_running: settings.max_running,
            pages: Pages::new(settings.pages),
            slots: Slots::new(settings.slots),
            running: Vec::new(),
            waiting: Waiting::new(),
            counters: Counters::new(settings.step_tokens),
        }
    }

    /// Puts a new sequence in line. All its tokens to come must fit into all pages.
    pub(crate) fn add(&mut self, sequence: Sequence) {
        let lane = sequence.lane();
        let prompts = self.running.iter().filter(|running| running.pending() > 1);
        let waiting = self.waiting.lanes().map(|(lane, _)| lane);
        let wanting: BTreeSet<_> = prompts.map(Sequence::lane).chain(waiting).collect();
        if !wanting.contains(&lane) {
            let present = self.jobs().into_keys().collect();
            self.counters.join(lane, wanting.into_iter(), &present);
        }
        self.waiting.push(sequence);
    }

    /// Decides the next step, and moves sequences and pages accordingly.
    pub(crate) fn plan(&mut self) -> Plan {
        let mut plan = Plan::default();
        self.plan_answers(&mut plan);
        let rows = self.step_tokens.saturating_sub(plan.rows());
        let most = match plan.rows() {
            0 => rows,
            answered => rows.min(answered.max(PROMPT_ROWS)),
        };
        if !plan.crowded {
            self.admit(rows, most, &mut plan);
        }
        self.plan_prompts(&mut plan, most);
        plan.parts.sort_by_key(|part| part.adapter);
        plan
    }

    /// Lets the row of `plan` that continues an answer be followed by so many guessed tokens, or by fewer: they are given what
    /// nobody else wants. Yields how many.
    pub(crate) fn foresee(&mut self, plan: &mut Plan, id: SequenceId, guesses: usize) -> usize {
        let guesses = guesses.min(self.step_tokens.saturating_sub(plan.rows()));
        // Nobody runs short of a page because of them.
        let in_need = plan.crowded || self.waiting() > 0;
        let spare = self.pages.free().saturating_sub(self.running.len());
        let spare = if in_need { 0 } else { spare };
        let part = plan.parts.iter_mut().find(|part| part.id == id);
        let part = part.filter(|part| part.is_decode() && part.draws());
        let Some((part, sequence)) = part.zip(find(&mut self.running, id)) else { return 0 };
        let guesses = sequence.foresee(guesses, spare, &mut self.pages);
        part.guess(guesses);
        guesses
    }

    /// `part` is computed and its logits are taken.
    pub(crate) fn commit(&mut self, part: &Part) {
        if let Some(sequence) = find(&mut self.running, part.id) {
            let prompt = sequence.commit(part, &mut self.pages);
            self.counters.charge(sequence.lane(), prompt, usize::from(part.draws()));
        }
    }

    /// A sequence has one more token; `keys` names the page that it fills, if it fills one. It may wait by now: its token was
    /// drawn late.
    pub(crate) fn grow(&mut self, id: SequenceId, keys: Vec<Key>) {
        let running = find(&mut self.running, id);
        if let Some(sequence) = running.or_else(|| self.waiting.find(id)) {
            sequence.grow(keys);
        }
    }

    /// A sequence is over, wherever it is; its place, pages and slot are free.
    pub(crate) fn remove(&mut self, id: SequenceId) {
        if let Some(index) = self.running.iter().position(|sequence| sequence.id() == id) {
            let mut sequence = self.running.remove(index);
            self.stop(&mut sequence);
        } else {
            self.waiting.remove(id);
        }
        if self.is_idle() {
            self.counters.clear();
        }
    }

    /// The block table of a running sequence.
    pub(crate) fn table(&self, id: SequenceId) -> &[u32] {
        self.running
            .iter()
            .find(|sequence| sequence.id() == id)
            .map_or(&[], |sequence| sequence.pages())
    }

    /// Sequences that run.
    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Sequences of each lane that has any.
    pub(crate) fn jobs(&self) -> BTreeMap<Lane, Jobs> {
        let mut jobs = BTreeMap::<_, Jobs>::new();
        for sequence in &self.running {
            jobs.entry(sequence.lane()).or_default().running += 1;
        }
        for (lane, count) in self.waiting.lanes() {
            jobs.entry(lane).or_default().waiting += count;
        }
        jobs
    }

    /// Nothing runs and nothing waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting() == 0
    }

    /// All pages.
    pub(crate) fn pages(&self) -> &Pages {
        &self.pages
    }

    /// Sequences whose adapters must stay where they are: they run, or go on before anybody else does.
    pub(crate) fn keeping(&self) -> impl Iterator<Item = SequenceId> {
        self.running.iter().map(Sequence::id).chain(self.waiting.preempted())
    }

    /// Sequences that wait, in about the order in which they will be let in.
    pub(crate) fn upcoming(&self) -> impl Iterator<Item = SequenceId> {
        self.waiting.upcoming(|lane| self.given(lane))
    }

    /// Which adapters are where steps run through them, beside those that run; `None` is all.
    pub(crate) fn set_there(&mut self, there: Option<BTreeSet<Digest>>) {
        self.slots.set_there(there);
    }

    /// The adapters that run.
    pub(crate) fn slots(&self) -> &Slots {
        &self.slots
    }

    /// One row for each sequence with one pending token.
    fn plan_answers(&mut self, plan: &mut Plan) {
        let mut index = 0;
        while index < self.running.len() {
            if self.running[index].pending() == 1 {
                self.take_rows(index, 1, plan);
            }
            index += 1;
        }
    }

    /// Plans at most `rows` rows of `running[index]`. Where no page is free for even one, it takes those of sequences
    /// admitted later; if there are none, it waits.
    fn take_rows(&mut self, index: usize, rows: usize, plan: &mut Plan) -> Option<Part> {
        loop {
            let sequence = &mut self.running[index];
            let rows = sequence.occupy(rows, &mut self.pages);
            if rows > 0 {
                let part = sequence.part(rows);
                plan.parts.push(part.clone());
                return Some(part);
            }
            plan.crowded = true;
            if index + 1 == self.running.len() {
                return None;
            }
            self.preempt_newest(plan);
        }
    }

    /// The sequence admitted last gives its pages back and waits, before all others, to be computed again.
    fn preempt_newest(&mut self, plan: &mut Plan) {
        if let Some(sequence) = self.running.pop() {
            let sequence = self.preempt(sequence, plan);
            self.waiting.push_preempted(sequence);
        }
    }

    /// What is planned for a sequence that ran is not computed, and what it has is free.
    fn preempt(&mut self, mut sequence: Sequence, plan: &mut Plan) -> Sequence {
        plan.parts.retain(|part| part.id != sequence.id());
        plan.preempted += 1;
        self.stop(&mut sequence);
        sequence
    }

    /// What a sequence gives back when it no longer runs.
    fn stop(&mut self, sequence: &mut Sequence) {
        sequence.vacate(&mut self.pages);
        self.slots.release(sequence.adapter());
    }
}

fn find(running: &mut [Sequence], id: SequenceId) -> Option<&mut Sequence> {
    running.iter_mut().find(|sequence| sequence.id() == id)
}

#[cfg(test)]
mod tests;
