//! Who gives up its place or its pages, and for whom.

use super::*;

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
