//! Lanes get the same of what they want more of than there is.

use std::{collections::BTreeMap, ops::Range};

use proptest::prelude::*;

use super::{super::prompts::shares, *};
use crate::engine::rng::Rng;

proptest! {
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
