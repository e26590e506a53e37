//! How far a request has come: positions and pages, no tokens.

use std::{mem, ops::Range};

use super::{
    job::{Lane, Scope},
    pages::{Pages, pages_for},
    prefix::Key,
};
use crate::{lora::Digest, model::PAGE};

/// Names a sequence for as long as the engine runs; later ones are larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SequenceId(pub(crate) u64);

/// What is wanted of a position beside its keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Logits `[vocab]`.
    #[default]
    Logits,
    /// The hidden state `[hidden]`.
    States,
}

/// One request as the scheduler sees it: tokens known, and how many of them are computed.
///
/// - Prompt and answer are not told apart: what is known and not computed is pending.
/// - `pages` covers at least the positions below `computed`.
#[derive(Debug)]
pub(crate) struct Sequence {
    id: SequenceId,
    lane: Lane,
    adapter: Option<Digest>,
    /// Tokens known: the prompt, and the answer so far.
    tokens: usize,
    /// Positions whose keys and values are in `pages`.
    computed: usize,
    /// Tokens that its lane has been charged for, or got for nothing; never fewer than are computed.
    paid: usize,
    /// Positions of which somebody still wants something, computed or not.
    wanted: Range<usize>,
    /// What that is.
    outcome: Outcome,
    /// Whose prefixes it may use, and may use its.
    scope: Scope,
    /// Names of the pages that its known tokens fill; empty where prefixes are not kept.
    keys: Vec<Key>,
    /// Its first pages that are known by these names, or need not be.
    kept: usize,
    /// Block table: position `p` is in `pages[p / PAGE]`.
    pages: Vec<u32>,
    /// How many others were admitted while this one stood first in its lane and found no slot.
    passed_over: usize,
}

impl Sequence {
    /// A request for `tokens` prompt tokens that wants the logits of the positions `wanted`.
    pub(crate) fn new(
        id: SequenceId,
        lane: Lane,
        adapter: Option<Digest>,
        tokens: usize,
        wanted: Range<usize>,
    ) -> Self {
        Self {
            id,
            lane,
            adapter,
            tokens,
            computed: 0,
            paid: 0,
            wanted,
            outcome: Outcome::default(),
            scope: Scope::default(),
            keys: Vec::new(),
            kept: 0,
            pages: Vec::new(),
            passed_over: 0,
        }
    }

    /// The same, with names for the pages that the prompt fills.
    pub(crate) fn keyed(self, scope: Scope, keys: Vec<Key>) -> Self {
        Self { scope, keys, ..self }
    }

    /// The same, which wants this of its positions.
    pub(crate) fn wanting(self, outcome: Outcome) -> Self {
        Self { outcome, ..self }
    }

    /// Its name.
    pub(crate) fn id(&self) -> SequenceId {
        self.id
    }

    /// The class of work it is scheduled in.
    pub(crate) fn lane(&self) -> Lane {
        self.lane
    }

    /// The adapter it runs through.
    pub(crate) fn adapter(&self) -> Option<Digest> {
        self.adapter
    }

    /// Tokens known.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Tokens known and not computed.
    pub(crate) fn pending(&self) -> usize {
        self.tokens - self.computed
    }

    /// Tokens of the prompt that its lane has not been charged for.
    pub(crate) fn unpaid(&self) -> usize {
        self.tokens - self.paid
    }

    /// Its block table.
    pub(crate) fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// See the field.
    pub(crate) fn passed_over(&self) -> usize {
        self.passed_over
    }

    /// Counts one admission of another while this one found no slot.
    pub(crate) fn pass_over(&mut self) {
        self.passed_over += 1;
    }

    /// Takes over pages that hold its prefix: their positions need not be computed. Those of which something is wanted are not among
    /// them.
    pub(crate) fn adopt(&mut self, pages: &mut Pages) {
        let mut table = mem::take(&mut self.pages);
        pages.adopt(self.prefix(), &mut table);
        self.pages = table;
        self.kept = self.pages.len();
        self.computed = self.kept * PAGE;
        self.paid = self.paid.max(self.computed);
    }

    /// Names of the pages that it may take over.
    fn prefix(&self) -> &[Key] {
        let most = self.wanted.start.min(self.tokens - 1) / PAGE;
        &self.keys[..most.min(self.keys.len())]
    }

    /// Free pages that its known tokens take where nothing of it is computed.
    pub(crate) fn new_pages(&self, pages: &Pages) -> usize {
        pages_for(self.tokens) - pages.shared(self.prefix())
    }

    /// Pending rows it may take in one step that has `scores` logit rows left for prompts.
    ///
    /// One logit row is always its own, so it can always go on. States are small: they need no bound but that of rows.
    pub(crate) fn reach(&self, scores: usize) -> usize {
        if self.outcome == Outcome::States {
            return self.pending();
        }
        let unscored = self.wanted.start.saturating_sub(self.computed);
        self.pending().min(unscored.saturating_add(scores).saturating_add(1))
    }

    /// Pending rows, at most `rows`, that its pages together with the free ones can hold; takes the pages.
    pub(crate) fn occupy(&mut self, rows: usize, pages: &mut Pages) -> usize {
        let room = (self.pages.len() + pages.free()) * PAGE - self.computed;
        let rows = rows.min(room);
        if rows > 0 {
            pages.lend(self.computed + rows, &mut self.pages);
        }
        rows
    }

    /// The next `rows` pending rows.
    pub(crate) fn part(&self, rows: usize) -> Part {
        let end = self.computed + rows;
        let first = self.wanted.start.clamp(self.computed, end);
        let (wanted, none) = (first..self.wanted.end.clamp(first, end), first..first);
        let (sampled, pooled) = match self.outcome {
            Outcome::Logits => (wanted, none),
            Outcome::States => (none, wanted),
        };
        let rows = self.computed..end;
        let completes = end == self.tokens;
        Part { id: self.id, adapter: self.adapter, rows, sampled, pooled, completes, guessed: 0 }
    }

    /// How many of `guesses` guessed tokens its pages, with `spare` free ones, can hold behind its known ones; takes the pages.
    pub(crate) fn foresee(&mut self, guesses: usize, spare: usize, pages: &mut Pages) -> usize {
        let room = (self.pages.len() + spare) * PAGE;
        let guesses = guesses.min(room.saturating_sub(self.tokens));
        pages.lend(self.tokens + guesses, &mut self.pages);
        guesses
    }

    /// `part` is computed and what was wanted of it is taken; returns how many tokens of it were never computed before.
    pub(crate) fn commit(&mut self, part: &Part, pages: &mut Pages) -> usize {
        self.computed = part.rows.end;
        let unpaid = self.computed.saturating_sub(self.paid);
        self.paid += unpaid;
        self.wanted.start = self.wanted.start.max(part.rows.end);
        let full = self.computed / PAGE;
        for (page, key) in self.pages.iter_mut().zip(&self.keys).take(full).skip(self.kept) {
            *page = pages.keep(*page, self.scope, *key);
        }
        self.kept = self.kept.max(full);
        unpaid
    }

    /// One more token is known, which was charged for when it was drawn; its logits are wanted. `keys` names the page that it
    /// fills, if it fills one.
    pub(crate) fn grow(&mut self, keys: Vec<Key>) {
        self.tokens += 1;
        self.paid += 1;
        self.keys.extend(keys);
    }

    /// Gives its pages back; everything known is pending again.
    pub(crate) fn vacate(&mut self, pages: &mut Pages) {
        pages.take_back(&mut self.pages);
        (self.computed, self.kept) = (0, 0);
    }
}

/// Consecutive rows of one sequence in one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Whose rows.
    pub(crate) id: SequenceId,
    /// Through which adapter.
    pub(crate) adapter: Option<Digest>,
    /// Their positions.
    pub(crate) rows: Range<usize>,
    /// Those positions among them that want logits.
    pub(crate) sampled: Range<usize>,
    /// Those positions among them whose hidden states are pooled.
    pub(crate) pooled: Range<usize>,
    /// After them the sequence has nothing pending.
    pub(crate) completes: bool,
    /// So many of them, the last, are of guessed tokens. They are sampled as if they were known.
    pub(crate) guessed: usize,
}

impl Part {
    /// One row that continues an answer (or computes a prompt's last token by itself).
    pub(crate) fn is_decode(&self) -> bool {
        self.completes && self.rows.len() - self.guessed == 1
    }

    /// A token is drawn from its last row.
    pub(crate) fn draws(&self) -> bool {
        self.completes && !self.sampled.is_empty() && self.sampled.end == self.rows.end
    }

    /// Goes on with so many guessed tokens.
    pub(crate) fn guess(&mut self, guesses: usize) {
        self.rows.end += guesses;
        self.sampled.end += guesses;
        self.guessed += guesses;
    }

    /// The row of its last known token, then those of guessed ones, each as if all before it had come true.
    pub(crate) fn one_by_one(&self) -> impl Iterator<Item = Self> {
        let rows = self.rows.end - self.guessed - 1..self.rows.end;
        rows.map(|row| {
            let (rows, sampled) = (row..row + 1, row..row + 1);
            Self {
                id: self.id,
                adapter: self.adapter,
                rows,
                sampled,
                pooled: row..row,
                completes: true,
                guessed: 0,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(tokens: usize, wanted: Range<usize>) -> Sequence {
        Sequence::new(SequenceId(0), Lane(0), None, tokens, wanted)
    }

    #[test]
    fn only_the_last_row_of_a_prompt_wants_logits() {
        let mut sequence = sequence(10, 9..usize::MAX);
        let part = sequence.part(6);
        assert_eq!((part.rows.clone(), part.sampled.len(), part.completes), (0..6, 0, false));
        sequence.commit(&part, &mut Pages::new(0));
        let part = sequence.part(4);
        assert_eq!((part.rows.clone(), part.sampled.clone(), part.completes), (6..10, 9..10, true));
    }

    #[test]
    fn rows_scored_once_are_not_scored_again_after_a_preemption() {
        let mut pages = Pages::new(4);
        let mut sequence = sequence(10, 0..usize::MAX);
        let part = sequence.part(sequence.reach(6));
        assert_eq!(part.sampled, 0..7);
        sequence.occupy(7, &mut pages);
        sequence.commit(&part, &mut pages);
        sequence.vacate(&mut pages);
        assert_eq!((sequence.pending(), pages.free()), (10, 4));
        assert_eq!(sequence.part(10).sampled, 7..10);
        assert_eq!(sequence.reach(0), 8, "seven rows again, and one that is its own");
    }

    #[test]
    fn states_are_pooled_once_and_bounded_by_nothing_but_rows() {
        let mut pages = Pages::new(8);
        let mut mean = sequence(100, 0..100).wanting(Outcome::States);
        assert_eq!(mean.reach(0), 100);
        let part = mean.part(60);
        assert_eq!((part.pooled.clone(), part.sampled.is_empty()), (0..60, true));
        mean.occupy(60, &mut pages);
        mean.commit(&part, &mut pages);
        mean.vacate(&mut pages);
        let part = mean.part(100);
        assert_eq!((part.pooled.clone(), part.completes, part.draws()), (60..100, true, false));
        let last = sequence(10, 9..10).wanting(Outcome::States).part(10);
        assert_eq!((last.pooled.clone(), last.sampled.len(), last.draws()), (9..10, 0, false));
    }

    #[test]
    fn a_prompt_alone_wants_no_logits_of_its_last_token() {
        assert_eq!(sequence(10, 0..9).part(10).sampled, 0..9);
        assert!(sequence(10, 9..9).part(10).sampled.is_empty());
    }
}
