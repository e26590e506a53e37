//! Who computes what in the next step. Pure: no thread, no clock, no tensor.
//!
//! A step is [`Scheduler::plan`], the computation, then [`Scheduler::commit`] for each part. Prefill and decode are one
//! notion: a sequence has pending tokens, and a plan takes rows of them. What must hold, and is tested below:
//!
//! - A plan has at most `step_tokens` rows.
//! - The sequence admitted longest ago always goes on: pages are taken from those admitted after a sequence, never
//!   from those before, and one sequence never needs more pages than there are.
//! - So everybody ends. Those preempted go first, nobody is admitted past them, and the ones before them only get fewer.
//!   Those that find no slot are overtaken a bounded number of times ([`Waiting`]).

use std::collections::BTreeMap;

use super::{
    Settings,
    job::Lane,
    pages::{Pages, pages_for},
    prefix::Key,
    sequence::{Part, Sequence, SequenceId},
    slots::Slots,
    waiting::{Waiting, in_turn},
};

/// Logit rows of one step beyond one for each sequence: they belong to prompts that are scored.
///
/// 64 rows of a vocabulary of 50,000 are 13 MB.
const SCORED_ROWS: usize = 64;

/// Rows of a prompt beside few sequences that are being answered.
///
/// While others are answered, a prompt takes no more rows of a step than they do together, or than this, so that their next
/// tokens come after about twice the time and not after a whole chunk; fewer than eight wait longer, or a prompt beside one
/// answer would take for ever. Several prompts take so many each: a short one need not wait for a long one.
const PROMPT_ROWS: usize = 8;

/// The sequences of one lane that want rows.
#[derive(Debug, Default)]
struct Queue {
    sequences: Vec<SequenceId>,
    /// Rows they could take together.
    need: usize,
}

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
    /// The lane whose prompts came first in the last step.
    led: Lane,
}

/// What one step computes.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Rows, sorted by adapter with the base first; one part for a sequence.
    pub(crate) parts: Vec<Part>,
    /// Sequences that lost their pages to older ones.
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
            led: Lane(u32::MAX),
        }
    }

    /// Puts a new sequence in line. All its tokens to come must fit into all pages.
    pub(crate) fn add(&mut self, sequence: Sequence) {
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
            self.admit(rows, most);
        }
        self.plan_prompts(&mut plan, most);
        plan.parts.sort_by_key(|part| part.adapter);
        plan
    }

    /// `part` is computed and its logits are taken.
    pub(crate) fn commit(&mut self, part: &Part) {
        if let Some(sequence) = find(&mut self.running, part.id) {
            sequence.commit(part, &mut self.pages);
        }
    }

    /// A running sequence has one more token; `keys` names the page that it fills, if it fills one.
    pub(crate) fn grow(&mut self, id: SequenceId, keys: Vec<Key>) {
        if let Some(sequence) = find(&mut self.running, id) {
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

    /// Nothing runs and nothing waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting() == 0
    }

    /// All pages.
    pub(crate) fn pages(&self) -> &Pages {
        &self.pages
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

    /// The rows that are left, to all others, `most` to each: lanes share equally, and within one whoever was admitted first comes first.
    fn plan_prompts(&mut self, plan: &mut Plan, most: usize) {
        let rows = self.step_tokens.saturating_sub(plan.rows());
        let mut queues: BTreeMap<_, Queue> = BTreeMap::new();
        for sequence in self.running.iter().filter(|sequence| !plan.holds(sequence.id())) {
            let queue = queues.entry(sequence.lane()).or_default();
            queue.sequences.push(sequence.id());
            queue.need += sequence.reach(SCORED_ROWS).min(most);
        }
        let mut lanes: Vec<_> = in_turn(self.led, queues.keys().copied()).collect();
        lanes.truncate(rows);
        let shares = shares(rows, lanes.iter().map(|lane| queues[lane].need).collect());
        let mut scores = SCORED_ROWS;
        for (lane, mut share) in lanes.iter().zip(shares) {
            for id in &queues[lane].sequences {
                // None where an older one has preempted it meanwhile.
                let index = self.running.iter().position(|sequence| sequence.id() == *id);
                let wish =
                    index.map_or(0, |index| self.running[index].reach(scores).min(share).min(most));
                if let Some(index) = index.filter(|_| wish > 0)
                    && let Some(part) = self.take_rows(index, wish, plan)
                {
                    share -= part.rows.len();
                    scores -= part.sampled.len().saturating_sub(1);
                }
            }
        }
        self.led = lanes.first().copied().unwrap_or(self.led);
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
        if let Some(mut sequence) = self.running.pop() {
            plan.parts.retain(|part| part.id != sequence.id());
            plan.preempted += 1;
            self.stop(&mut sequence);
            self.waiting.push_preempted(sequence);
        }
    }

    /// What a sequence gives back when it no longer runs.
    fn stop(&mut self, sequence: &mut Sequence) {
        sequence.vacate(&mut self.pages);
        self.slots.release(sequence.adapter());
    }

    /// Lets sequences in while there is a place, a slot and pages for all their tokens.
    ///
    /// A lane whose running prompts can fill the `rows` of this step is given no other: it would only hold a place
    /// that another lane can use.
    fn admit(&mut self, rows: usize, most: usize) {
        self.slots.drain(self.waiting.overdue_adapters(&self.slots));
        while self.running.len() < self.max_running {
            let open = |lane| self.backlog(lane, most) < rows;
            let Some(place) = self.waiting.next(&self.slots, open) else { return };
            // Who lacks only pages holds everybody up, or the small would starve the large.
            if !self.waiting.get(place).is_some_and(|sequence| self.has_pages(sequence)) {
                return;
            }
            let Some(mut sequence) = self.waiting.take(place) else { return };
            sequence.adopt(&mut self.pages);
            self.slots.bind(sequence.adapter());
            self.waiting.pass_over(&self.slots);
            self.running.push(sequence);
        }
    }

    /// Whether all known tokens of everybody fit with one more page for each, so that a sequence let in is not
    /// preempted at once. Alone, a sequence always fits.
    fn has_pages(&self, next: &Sequence) -> bool {
        let promised: usize = self
            .running
            .iter()
            .map(|sequence| 1 + pages_for(sequence.tokens()).saturating_sub(sequence.pages().len()))
            .sum();
        self.running.is_empty() || self.pages.free() > promised + next.new_pages(&self.pages)
    }

    /// Rows that the prompts of a lane take of a step in which each may have `most`.
    fn backlog(&self, lane: Lane, most: usize) -> usize {
        let prompts = self.running.iter().filter(|running| running.lane() == lane);
        let pending = prompts.map(Sequence::pending).filter(|pending| *pending > 1);
        pending.map(|pending| pending.min(most)).sum()
    }
}

fn find(running: &mut [Sequence], id: SequenceId) -> Option<&mut Sequence> {
    running.iter_mut().find(|sequence| sequence.id() == id)
}

/// Divides `rows` so that whoever gets less than their need gets no less than anybody else, give or take one.
fn shares(mut rows: usize, needs: Vec<usize>) -> Vec<usize> {
    let mut order: Vec<_> = (0..needs.len()).collect();
    // Small needs first: what they leave over is shared by the rest.
    order.sort_by_key(|index| needs[*index]);
    let mut shares = needs;
    for (done, index) in order.iter().enumerate() {
        shares[*index] = shares[*index].min(rows / (order.len() - done));
        rows -= shares[*index];
    }
    shares
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::{
        engine::{job::Scope, prefix::Chain},
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
            let sequence = Sequence::new(
                SequenceId(id),
                Lane(self.lane),
                self.digest(),
                self.prompt,
                start..end,
            );
            sequence.keyed(Scope(self.scope), self.keys(0, self.prompt))
        }

        fn digest(&self) -> Option<Digest> {
            self.adapter.map(|id| Digest::of(&[id], &[]))
        }

        /// Names of the pages that `known` tokens fill, without those that `named` fill.
        fn keys(&self, named: usize, known: usize) -> Vec<Key> {
            let mut chain = Chain::new(Scope(self.scope), self.digest());
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
            self.expected.insert(id, Expected { wish, computed: 0, generated: 0, wanted });
            id
        }

        fn cancel(&mut self, id: u64) {
            self.expected.remove(&id);
            self.scheduler.remove(SequenceId(id));
        }

        fn step(&mut self) {
            self.steps += 1;
            let plan = self.scheduler.plan();
            self.preempted += plan.preempted;
            self.check_plan(&plan);
            self.check_resources();
            for part in &plan.parts {
                self.compute(part);
            }
            assert!(self.restarts <= self.preempted, "recomputed without a preemption");
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
            self.scheduler.commit(part);
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

    fn settings() -> impl Strategy<Value = Settings> {
        (1..12_usize, 1..40_usize, 1..10_usize, 1..4_usize).prop_map(
            |(pages, step_tokens, max_running, slots)| Settings {
                context: usize::MAX,
                pages,
                step_tokens,
                max_running: max_running.min(step_tokens),
                max_waiting: usize::MAX,
                slots,
                keep_prefixes: true,
            },
        )
    }

    fn wishes() -> impl Strategy<Value = Wish> {
        let whose = (0..3_u32, prop::option::of(0..5_u8), 0..2_u8, 0..2_u32);
        (whose, 1..120_usize, 0..60_usize, any::<bool>()).prop_map(
            |((lane, adapter, kind, scope), prompt, answer, scored)| Wish {
                lane,
                adapter,
                prompt,
                answer,
                scored,
                kind,
                scope,
            },
        )
    }

    #[derive(Clone, Debug)]
    enum Op {
        Add(Wish),
        Cancel(prop::sample::Index),
        Step,
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            2 => wishes().prop_map(Op::Add),
            1 => any::<prop::sample::Index>().prop_map(Op::Cancel),
            6 => Just(Op::Step),
        ];
        prop::collection::vec(op, 1..150)
    }

    proptest! {
        #[test]
        fn every_promise_holds_in_any_traffic(settings in settings(), ops in ops()) {
            let mut world = World::new(settings);
            for op in ops {
                match op {
                    Op::Add(wish) => {
                        world.add(wish);
                    }
                    Op::Cancel(index) if !world.expected.is_empty() => {
                        let ids: Vec<_> = world.expected.keys().copied().collect();
                        world.cancel(*index.get(&ids));
                    }
                    Op::Cancel(_) => {}
                    Op::Step => world.step(),
                }
            }
            world.finish();
        }

        /// However much arrives without end, in whatever lane and through whatever adapter, one job gets its turn.
        #[test]
        fn nobody_starves(
            settings in settings(),
            victim in wishes(),
            traffic in prop::collection::vec(wishes(), 1..20),
        ) {
            let mut world = World::new(settings);
            let mut traffic = traffic.into_iter().map(|mut wish| {
                // Short, so that the bound can be low; another lane, since one's own lane is a plain queue.
                wish.prompt = wish.prompt.min(8);
                wish.answer = wish.answer.min(8);
                wish.lane += 10;
                wish
            }).cycle();
            let mut fill = |world: &mut World| {
                while world.scheduler.waiting() < 12 {
                    world.add(traffic.next().unwrap());
                }
            };
            fill(&mut world);
            world.step();
            let victim = world.add(victim);
            while world.expected.contains_key(&victim) {
                fill(&mut world);
                world.step();
                prop_assert!(world.steps < 6_000, "starved");
            }
        }

        #[test]
        fn shares_are_fair_and_nothing_is_left(
            rows in 0..100_usize,
            needs in prop::collection::vec(0..50_usize, 1..10),
        ) {
            prop_assume!(rows >= needs.len());
            let shares = shares(rows, needs.clone());
            prop_assert_eq!(shares.iter().sum::<usize>(), rows.min(needs.iter().sum()));
            let most = shares.iter().max().unwrap();
            for (share, need) in shares.iter().zip(&needs) {
                prop_assert!(share <= need);
                prop_assert!(share == need || share + 1 >= *most);
            }
        }
    }

    fn roomy() -> Settings {
        Settings {
            pages: 100,
            context: usize::MAX,
            step_tokens: 32,
            max_running: 8,
            max_waiting: 100,
            slots: 4,
            keep_prefixes: true,
        }
    }

    fn wish(lane: u32, prompt: usize, answer: usize) -> Wish {
        // A kind for each lane, so that none has a prefix of another.
        let kind = u8::try_from(lane).unwrap();
        Wish { lane, adapter: None, prompt, answer, scored: false, kind, scope: 0 }
    }

    #[test]
    fn decodes_go_beside_a_long_prompt_that_goes_in_chunks() {
        let mut world = World::new(roomy());
        world.add(wish(0, 4, 20));
        world.step();
        world.add(wish(0, 100, 1));
        for expected in [0..8, 8..16, 16..24] {
            let plan = world.scheduler.plan();
            let rows: Vec<_> = plan.parts.iter().map(|part| part.rows.clone()).collect();
            assert_eq!((rows.len(), rows[0].len(), rows[1].clone()), (2, 1, expected));
            assert!(plan.parts[0].is_decode() && !plan.parts[1].is_decode());
            plan.parts.iter().for_each(|part| world.compute(part));
        }
        world.finish();
    }

    #[test]
    fn a_prompt_takes_as_many_rows_as_answers_do_beside_it_and_all_where_there_are_none() {
        let mut world = World::new(Settings { step_tokens: 64, max_running: 20, ..roomy() });
        let prompts = |plan: &Plan| -> Vec<_> {
            let prompts = plan.parts.iter().filter(|part| !part.is_decode());
            prompts.map(|part| part.rows.len()).collect()
        };
        for _ in 0..12 {
            world.add(wish(0, 2, 60));
        }
        world.step();
        world.add(wish(1, 100, 1));
        world.add(wish(2, 100, 1));
        assert_eq!(prompts(&world.scheduler.plan()), [12, 12]);
        // One lane, and more pending rows than a step has: the second is let in all the same.
        let mut world = World::new(Settings { step_tokens: 64, max_running: 20, ..roomy() });
        world.add(wish(0, 2, 60));
        world.step();
        world.add(wish(1, 200, 1));
        world.add(Wish { kind: 2, ..wish(1, 6, 1) });
        assert_eq!(prompts(&world.scheduler.plan()), [8, 6]);
        let mut world = World::new(Settings { step_tokens: 64, ..roomy() });
        world.add(wish(1, 100, 1));
        assert_eq!(prompts(&world.scheduler.plan()), [64]);
    }

    #[test]
    fn a_lane_with_many_long_prompts_leaves_half_the_rows_to_another() {
        let mut world = World::new(roomy());
        for _ in 0..20 {
            world.add(wish(0, 160, 1));
        }
        world.step();
        let short = world.add(wish(1, 16, 1));
        world.step();
        assert!(!world.expected.contains_key(&short), "16 of 32 rows were its");
    }

    #[test]
    fn the_newest_gives_way_and_the_oldest_never() {
        let mut world =
            World::new(Settings { pages: 4, step_tokens: 64, max_running: 2, ..roomy() });
        let oldest = world.add(wish(0, 15, 40));
        let newest = world.add(Wish { kind: 1, ..wish(0, 15, 40) });
        while world.expected.contains_key(&oldest) {
            world.step();
        }
        assert_eq!(world.preempted, 1);
        assert!(world.expected.contains_key(&newest));
        world.finish();
    }

    /// A long prompt and a newer answer grow side by side by a row a step, until the answer takes the last page and the
    /// prompt needs one in the same step.
    #[test]
    fn who_is_preempted_within_a_plan_is_no_longer_in_it() {
        let mut world =
            World::new(Settings { pages: 15, step_tokens: 2, max_running: 2, ..roomy() });
        let (oldest, newest) = (world.add(wish(0, 160, 1)), world.add(wish(1, 1, 150)));
        while world.preempted == 0 {
            world.step();
        }
        let computed = |id| world.expected[&id].computed;
        assert_eq!((computed(oldest), computed(newest)), (7 * PAGE + 1, 7 * PAGE));
        world.finish();
    }

    #[test]
    fn a_mixed_step_has_answers_and_prompts_of_many_adapters() {
        let mut world = World::new(roomy());
        for id in 0..4 {
            world.add(Wish { adapter: Some(id), ..wish(0, 2, 9) });
        }
        let plan = world.scheduler.plan();
        assert!(!plan.is_mixed(8, 4), "prompts only");
        plan.parts.iter().for_each(|part| world.compute(part));
        world.add(Wish { adapter: Some(0), ..wish(0, 5, 9) });
        let plan = world.scheduler.plan();
        assert!(plan.is_mixed(8, 4) && !plan.is_mixed(10, 4) && !plan.is_mixed(8, 5));
    }
}
