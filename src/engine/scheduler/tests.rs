//! A scheduler with a network that does nothing, in a small world.

mod fairness;
mod giving_way;
mod promises;
mod rows;

use std::{
    collections::{BTreeMap, BTreeSet, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    time::Duration,
};

use super::*;
use crate::{
    engine::{
        job::{Salt, Scope},
        prefix::Chain,
    },
    lora::Digest,
    model::PAGE,
};

/// A request of the simulation.
#[derive(Clone, Debug)]
struct Wish {
    lane: u32,
    adapter: Option<u8>,
    prompt: usize,
    answer: usize,
    scored: bool,
    /// What the prompt is: those of one kind are alike as far as they go.
    kind: u8,
    scope: u32,
}

/// What a position of a page depends on.
type Content = (u32, Option<u8>, u8, usize);

impl Wish {
    fn total(&self) -> usize {
        self.prompt + self.answer
    }

    fn sequence(&self, id: u64) -> Sequence {
        let start = if self.scored { 0 } else { self.prompt - 1 };
        let end = if self.answer == 0 { self.prompt - 1 } else { usize::MAX };
        let sequence =
            Sequence::new(SequenceId(id), Lane(self.lane), self.digest(), self.prompt, start..end);
        sequence.keyed(Scope(self.scope), self.keys(0, self.prompt))
    }

    fn digest(&self) -> Option<Digest> {
        self.adapter.map(|id| Digest::of(&[id], &[]))
    }

    /// Names of the pages that `known` tokens fill, without those that `named` fill.
    fn keys(&self, named: usize, known: usize) -> Vec<Key> {
        let mut chain = Chain::new((Scope(self.scope), Salt::default()), self.digest());
        let tokens = vec![self.kind.into(); known];
        chain.extend(&tokens[..named]);
        chain.extend(&tokens)
    }

    fn content(&self, position: usize) -> Content {
        (self.scope, self.adapter, self.kind, position)
    }
}

/// What must have happened to a sequence so far.
#[derive(Debug)]
struct Expected {
    wish: Wish,
    computed: usize,
    /// Positions of the prompt that were computed, or never need be.
    paid: usize,
    generated: usize,
    /// Next position whose logits must come.
    wanted: usize,
}

/// A scheduler with a network that does nothing, and every promise checked at every step.
struct World {
    settings: Settings,
    scheduler: Scheduler,
    expected: BTreeMap<u64, Expected>,
    next: u64,
    steps: usize,
    preempted: usize,
    restarts: usize,
    /// What each lane must have been charged.
    given: BTreeMap<u32, u64>,
    /// What was written to each place of each page.
    kv: Vec<[Option<Content>; PAGE]>,
}

impl World {
    fn new(settings: Settings) -> Self {
        Self {
            scheduler: Scheduler::new(&settings),
            kv: vec![[None; PAGE]; settings.pages],
            settings,
            expected: BTreeMap::new(),
            next: 0,
            steps: 0,
            preempted: 0,
            restarts: 0,
            given: BTreeMap::new(),
        }
    }

    fn given(&self, lane: u32) -> u64 {
        self.given.get(&lane).copied().unwrap_or(0)
    }

    /// Adds to a lane until it has so many, of different kinds.
    fn crowd(&mut self, count: usize, wish: &Wish) {
        let of_lane = |one: &&Expected| one.wish.lane == wish.lane;
        for _ in self.expected.values().filter(of_lane).count()..count {
            self.add(Wish { kind: u8::try_from(self.next % 251).unwrap(), ..wish.clone() });
        }
    }

    fn add(&mut self, mut wish: Wish) -> u64 {
        wish.prompt = wish.prompt.min(self.settings.pages * PAGE);
        wish.answer = wish.answer.min(self.settings.pages * PAGE - wish.prompt);
        let id = self.next;
        self.next += 1;
        let sequence = wish.sequence(id);
        let wanted = if wish.scored { 0 } else { wish.prompt - 1 };
        self.scheduler.add(sequence);
        self.expected.insert(id, Expected { wish, computed: 0, paid: 0, generated: 0, wanted });
        id
    }

    fn cancel(&mut self, id: u64) {
        self.expected.remove(&id);
        self.scheduler.remove(SequenceId(id));
    }

    /// Yields how many rows it had.
    fn step(&mut self) -> usize {
        self.steps += 1;
        let mut plan = self.scheduler.plan();
        self.preempted += plan.preempted;
        self.check_plan(&plan);
        self.guess(&mut plan);
        self.check_resources();
        for part in &plan.parts {
            if part.guessed == 0 {
                self.compute(part);
            } else {
                self.compute_guessed(part);
            }
        }
        assert!(self.restarts <= self.preempted, "recomputed without a preemption");
        plan.rows()
    }

    /// Some number that differs from step to step and from sequence to sequence, below `end`.
    fn any(&self, id: u64, end: usize) -> usize {
        let mut hasher = DefaultHasher::new();
        (self.steps, id).hash(&mut hasher);
        usize::try_from(hasher.finish() % end as u64).unwrap()
    }

    /// Guesses something of those that are answered.
    fn guess(&mut self, plan: &mut Plan) {
        let ids: Vec<_> =
            plan.parts.iter().map(|part| (part.id, part.is_decode() && part.draws())).collect();
        for (id, answered) in ids {
            let (free, before) = (self.scheduler.pages.free(), plan.rows());
            let guesses = self.any(id.0, self.settings.guesses + 1);
            let taken = self.scheduler.foresee(plan, id, guesses);
            assert!(taken <= guesses && (taken == 0 || answered));
            assert_eq!(plan.rows(), before + taken);
            let lent = free - self.scheduler.pages.free();
            assert!(
                lent == 0
                    || (self.scheduler.waiting() == 0 && lent + self.scheduler.running() <= free)
            );
        }
        assert!(plan.rows() <= self.settings.step_tokens);
    }

    /// Some of the guesses come true; the rest leave what nobody may read.
    fn compute_guessed(&mut self, part: &Part) {
        let table = self.scheduler.table(part.id);
        assert!(table.len() * PAGE >= part.rows.end);
        for position in part.rows.clone() {
            self.kv[table[position / PAGE] as usize][position % PAGE] = None;
        }
        let right = self.any(part.id.0 + 1, part.guessed + 1);
        for row in part.one_by_one().take(right + 1) {
            if self.expected.contains_key(&part.id.0) {
                self.compute(&row);
            }
        }
    }

    fn check_plan(&self, plan: &Plan) {
        assert!(plan.rows() <= self.settings.step_tokens);
        assert!(plan.parts.is_sorted_by_key(|part| part.adapter), "rows of adapters together");
        let ids: BTreeSet<_> = plan.parts.iter().map(|part| part.id).collect();
        assert_eq!(ids.len(), plan.parts.len(), "one part for a sequence");
        let sampled: usize = plan.parts.iter().map(|part| part.sampled.len()).sum();
        assert!(sampled <= self.settings.max_running + SCORED_ROWS);
    }

    fn check_resources(&self) {
        let scheduler = &self.scheduler;
        assert!(scheduler.running() <= self.settings.max_running);
        let known = scheduler.running() + scheduler.waiting();
        assert_eq!(known, self.expected.len(), "lost or kept");
        let adapters: BTreeSet<_> =
            scheduler.running.iter().filter_map(Sequence::adapter).collect();
        assert!(adapters.len() <= self.settings.slots);
        assert_eq!(adapters.len(), scheduler.slots.bound());
        let owned: BTreeSet<u32> =
            scheduler.running.iter().flat_map(Sequence::pages).copied().collect();
        assert_eq!(owned.len() + scheduler.pages.free(), self.settings.pages, "leaked");
        scheduler.pages.check(scheduler.running.iter().map(Sequence::pages));
    }

    fn compute(&mut self, part: &Part) {
        assert!(!part.rows.is_empty());
        assert!(self.scheduler.table(part.id).len() * PAGE >= part.rows.end);
        let expected = self.expected.get_mut(&part.id.0).expect("cancelled ones have no rows");
        if part.rows.start != expected.computed {
            // Not on where it was, then behind a prefix, whose logits nobody wants and which is checked below.
            assert!(part.rows.start.is_multiple_of(PAGE));
            assert!(part.rows.start <= expected.wanted, "logits are skipped");
            self.restarts += usize::from(expected.computed > 0);
        }
        expected.computed = part.rows.end;
        let table = self.scheduler.table(part.id);
        let place = |position: usize| (table[position / PAGE] as usize, position % PAGE);
        for position in 0..part.rows.start {
            let (page, at) = place(position);
            assert_eq!(self.kv[page][at], Some(expected.wish.content(position)), "read");
        }
        for position in part.rows.clone() {
            let (page, at) = place(position);
            self.kv[page][at] = Some(expected.wish.content(position));
        }
        let known = expected.wish.prompt + expected.generated;
        assert!(part.rows.end <= known);
        assert_eq!(part.completes, part.rows.end == known);
        let last = if expected.wish.answer == 0 { known - 1 } else { known };
        let wanted = expected.wanted..part.rows.end.min(last).max(expected.wanted);
        assert!(part.sampled == wanted || (part.sampled.is_empty() && wanted.is_empty()));
        expected.wanted = wanted.end;
        let fresh = part
            .rows
            .end
            .min(expected.wish.prompt)
            .saturating_sub(part.rows.start.max(expected.paid));
        expected.paid = expected.paid.max(part.rows.end);
        let drawn = part.completes && expected.generated < expected.wish.answer;
        let cost = (fresh + 2 * usize::from(drawn)) as u64;
        *self.given.entry(expected.wish.lane).or_default() += cost;
        let before = self.scheduler.counters.of(Lane(expected.wish.lane));
        self.scheduler.commit(part);
        let after = self.scheduler.counters.of(Lane(expected.wish.lane));
        assert_eq!(after - before, cost, "charged once, and only for what is computed");
        if part.completes && expected.generated < expected.wish.answer {
            expected.generated += 1;
            if expected.generated < expected.wish.answer {
                let keys = expected.wish.keys(known, known + 1);
                self.scheduler.grow(part.id, keys);
                return;
            }
        }
        if part.completes {
            self.expected.remove(&part.id.0);
            self.scheduler.remove(part.id);
        }
    }

    /// As many steps as the oldest sequences need one after the other, were nothing computed beside them.
    fn finish(&mut self) {
        let work: usize = self.expected.values().map(|expected| expected.wish.total()).sum();
        let lanes: BTreeSet<_> = self.expected.values().map(|one| one.wish.lane).collect();
        let bound = self.steps + work * (lanes.len() + 1);
        while !self.scheduler.is_idle() {
            self.step();
            assert!(self.steps <= bound, "no progress");
        }
        assert!(self.expected.is_empty());
        assert_eq!(self.scheduler.pages.free(), self.settings.pages);
    }
}

fn roomy() -> Settings {
    Settings {
        pages: 100,
        context: usize::MAX,
        step_tokens: 32,
        max_running: 8,
        max_waiting: 100,
        max_wait: Duration::MAX,
        slots: 4,
        keep_prefixes: true,
        guesses: 0,
    }
}

fn wish(lane: u32, prompt: usize, answer: usize) -> Wish {
    // A kind for each lane, so that none has a prefix of another.
    let kind = u8::try_from(lane).unwrap();
    Wish { lane, adapter: None, prompt, answer, scored: false, kind, scope: 0 }
}
