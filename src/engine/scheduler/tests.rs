use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::Duration,
};

use proptest::prelude::*;

use super::*;
use crate::{
    engine::{
        job::{Salt, Scope},
        prefix::Chain,
        rng::Rng,
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
        let plan = self.scheduler.plan();
        self.preempted += plan.preempted;
        self.check_plan(&plan);
        self.check_resources();
        for part in &plan.parts {
            self.compute(part);
        }
        assert!(self.restarts <= self.preempted, "recomputed without a preemption");
        plan.rows()
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

fn settings() -> impl Strategy<Value = Settings> {
    (1..12_usize, 1..40_usize, 1..10_usize, 1..4_usize).prop_map(
        |(pages, step_tokens, max_running, slots)| Settings {
            context: usize::MAX,
            pages,
            step_tokens,
            max_running: max_running.min(step_tokens),
            max_waiting: usize::MAX,
            max_wait: Duration::MAX,
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
                Op::Step => {
                    world.step();
                }
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
    fn shares_make_lanes_even_and_leave_nothing(
        rows in 1..100_usize,
        lanes in prop::collection::vec((0..60_u64, 1..50_usize), 1..10),
    ) {
        let shares = shares(rows, &lanes);
        prop_assert_eq!(
            shares.iter().sum::<usize>(),
            rows.min(lanes.iter().map(|(_, most)| most).sum())
        );
        prop_assert!(shares[0] > 0, "the oldest goes on");
        let after: Vec<_> =
            shares.iter().zip(&lanes).map(|(share, (given, _))| given + *share as u64).collect();
        for (lane, (share, (_, most))) in shares.iter().zip(&lanes).enumerate() {
            prop_assert!(share <= most);
            // Whoever could take more is not behind anybody who was given a row for being behind.
            let richest = (0..lanes.len()).filter(|other| shares[*other] > usize::from(*other == 0));
            prop_assert!(share == most || richest.map(|other| after[other]).all(|top| top <= after[lane] + 1));
        }
    }

    /// Two lanes that always want more are given the same, give or take twice what as many requests as run may cost (the
    /// paper's bound is of this form), and the allowance, which is a step.
    #[test]
    fn lanes_that_always_want_more_are_given_the_same(
        sizes in prop::array::uniform2((1..60_usize, 1..40_usize)),
        (ahead, max_running, step_tokens) in (0..400_usize, 1..9_usize, 9..40_usize),
    ) {
        let mut world =
            World::new(Settings { pages: 200, max_running, step_tokens, ..roomy() });
        let fill = |world: &mut World, lanes: Range<u32>| {
            for (lane, (prompt, answer)) in lanes.zip(sizes) {
                world.crowd(2 * max_running, &wish(lane, prompt, answer));
            }
        };
        for _ in 0..ahead {
            fill(&mut world, 0..1);
            world.step();
        }
        let before = world.given(0);
        let dearest = sizes.map(|(prompt, answer)| prompt + 2 * answer).into_iter().max();
        let bound = 2 * dearest.unwrap_or(0) * max_running + step_tokens;
        for _ in 0..600 {
            fill(&mut world, 0..2);
            world.step();
            let (one, other) = (world.given(0) - before, world.given(1));
            prop_assert!(one.abs_diff(other) <= bound as u64, "{one} and {other}");
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
        max_wait: Duration::MAX,
        slots: 4,
        keep_prefixes: true,
    }
}

fn wish(lane: u32, prompt: usize, answer: usize) -> Wish {
    // A kind for each lane, so that none has a prefix of another.
    let kind = u8::try_from(lane).unwrap();
    Wish { lane, adapter: None, prompt, answer, scored: false, kind, scope: 0 }
}

/// Its prompts fill the step, so none of it comes in; the other's, of one row each, would have theirs before them.
#[test]
fn nobody_comes_in_past_a_lane_that_was_given_less_and_has_enough_to_do() {
    let settings = Settings { pages: 200, max_running: 7, step_tokens: 9, ..roomy() };
    let mut world = World::new(settings);
    for _ in 0..2000 {
        world.crowd(14, &wish(0, 14, 1));
        world.crowd(14, &wish(1, 1, 1));
        world.step();
    }
    let (one, other) = (world.given(0), world.given(1));
    assert!(one.abs_diff(other) <= 16 * 7, "{one} and {other}");
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
    world.add(Wish { kind: 1, ..wish(0, 100, 1) });
    world.add(Wish { kind: 2, ..wish(0, 100, 1) });
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
fn a_prompt_of_a_lane_that_was_given_less_is_computed_at_once() {
    let mut world = World::new(Settings { step_tokens: 80, max_running: 20, ..roomy() });
    world.crowd(12, &wish(0, 2, 90));
    for _ in 0..10 {
        world.step();
    }
    world.crowd(16, &wish(0, 150, 1));
    world.step();
    let quiet = world.add(wish(100, 50, 4));
    let plan = world.scheduler.plan();
    let rows = |id| plan.parts.iter().find(|part| part.id.0 == id).unwrap().rows.len();
    assert_eq!((rows(quiet), rows(12)), (50, 10), "and the rest is for the oldest of the others");
    assert_eq!(plan.rows(), 12 + 4 * 12 + 12, "as many as if all were alike");
}

#[test]
fn who_comes_back_is_no_more_than_a_step_ahead() {
    let mut world = World::new(roomy());
    world.add(wish(1, 4, 1));
    for _ in 0..100 {
        world.crowd(4, &wish(0, 50, 50));
        world.step();
    }
    world.add(wish(1, 4, 1));
    let [loud, quiet] = [0, 1].map(|lane| world.scheduler.counters.of(Lane(lane)));
    assert!(loud > 500 && quiet == loud - 32, "{loud} {quiet}");
}

#[test]
fn a_lane_that_has_all_places_gives_up_what_exceeds_its_share() {
    let mut world = World::new(Settings { max_running: 4, ..roomy() });
    world.crowd(20, &wish(0, 20, 90));
    for _ in 0..20 {
        world.step();
    }
    let running = |world: &World, lane| {
        let of_lane = |sequence: &&Sequence| sequence.lane() == Lane(lane);
        world.scheduler.running.iter().filter(of_lane).count()
    };
    assert_eq!(running(&world, 0), 4);
    let quiet = [0, 1, 2].map(|_| world.add(wish(1, 5, 3)));
    world.step();
    assert_eq!((running(&world, 0), running(&world, 1), world.preempted), (2, 2, 2));
    assert_eq!(world.expected[&quiet[1]].generated, 1, "at once");
    assert!((0..2).all(|oldest| world.expected[&oldest].computed > 20), "the oldest go on");
    world.finish();
    assert_eq!(world.preempted, 2, "the third took the place of one of its own lane");
}

#[test]
fn a_lane_that_has_all_pages_gives_up_what_exceeds_its_share() {
    let mut world = World::new(Settings { pages: 12, ..roomy() });
    world.crowd(3, &wish(0, 20, 60));
    for _ in 0..20 {
        world.step();
    }
    let large = world.add(wish(1, 100, 1));
    world.step();
    assert_eq!((world.preempted, world.expected[&large].computed), (0, 0), "more than its share");
    world.cancel(large);
    let small = world.add(wish(1, 60, 2));
    world.step();
    assert_eq!(world.preempted, 1);
    assert!(world.expected[&small].computed > 0);
    world.finish();
}

#[test]
fn the_newest_gives_way_and_the_oldest_never() {
    let mut world = World::new(Settings { pages: 4, step_tokens: 64, max_running: 2, ..roomy() });
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
    let mut world = World::new(Settings { pages: 15, step_tokens: 2, max_running: 2, ..roomy() });
    let (oldest, newest) = (world.add(wish(0, 160, 1)), world.add(wish(1, 1, 150)));
    while world.preempted == 0 {
        world.step();
    }
    let computed = |id| world.expected[&id].computed;
    assert_eq!((computed(oldest), computed(newest)), (7 * PAGE + 1, 7 * PAGE));
    world.finish();
}

/// Requests of a lane, short and long, that come at random, `load` of what can be computed: when each does, in rows.
fn poisson(lane: u32, load: f64, end: f64) -> Vec<(f64, Wish)> {
    let mut rng = Rng::new(u64::from(lane));
    // A row for each token, and a part of the steps' fixed cost.
    let mean = f64::from(96 + 72 + 20) / load;
    let mut at = 0.0;
    let mut came = Vec::new();
    while at < end {
        at -= mean * (1.0 - rng.unit()).ln();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small")]
        let mut between = |from: f64, to: f64| (from + (to - from) * rng.unit()) as usize;
        came.push((at, wish(lane, between(8.0, 185.0), between(16.0, 129.0))));
    }
    came
}

/// The p95 of lane 0's times to the first token, in rows. A step takes as long as its rows and four more.
fn p95(mut came: Vec<(f64, Wish)>) -> f64 {
    came.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    let mut came = came.into_iter().peekable();
    let settings = Settings { pages: 400, step_tokens: 256, max_running: 64, ..roomy() };
    let mut world = World::new(settings);
    let (mut now, mut times, mut early) = (0.0, Vec::new(), BTreeMap::new());
    while came.peek().is_some() || !world.scheduler.is_idle() {
        if let Some((at, _)) = came.peek().filter(|_| world.scheduler.is_idle()) {
            now = f64::max(now, *at);
        }
        while let Some((at, wish)) = came.next_if(|(at, _)| *at <= now) {
            let kind = u8::try_from(world.next % 251).unwrap();
            let lane = wish.lane;
            let id = world.add(Wish { kind, ..wish });
            if lane == 0 {
                early.insert(id, at);
            }
        }
        now += (world.step() + 4) as f64;
        early.retain(|id, at| {
            let waits = world.expected.get(id).is_some_and(|one| one.generated == 0);
            if !waits {
                times.push(now - *at);
            }
            waits
        });
    }
    times.sort_by(f64::total_cmp);
    times[times.len() * 95 / 100]
}

/// In time that is counted in rows; `tests/system/fairness.py` measures it.
#[test]
fn a_lane_with_four_fifths_of_the_load_is_hardly_heard() {
    let end = 150_000.0;
    for load in [0.5_f64, 0.7, 0.9, 1.5] {
        let quiet = || poisson(0, 0.2 * load.min(1.0), end);
        let alone = p95(quiet());
        let beside = p95([quiet(), poisson(1, load - 0.2 * load.min(1.0), end)].concat());
        assert!(beside < 1.5 * alone, "at {load}: {alone} alone, {beside} beside it");
    }
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
