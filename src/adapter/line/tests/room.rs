//! What stays in memory, and what goes.

use super::*;

#[test]
fn what_is_forgotten_goes_with_its_last_lease_and_can_come_again() {
    let mut world = World::new(3, 9, 2);
    for adapter in ['a', 'b', 'b'] {
        world.lend(adapter);
    }
    world.give_back('a');
    world.forget('a');
    world.forget('b');
    world.forget('f');
    assert_eq!(world.resident(), "b");
    world.give_back('b');
    assert_eq!(world.resident(), "b");
    world.lend('b');
    world.give_back('b');
    world.give_back('b');
    assert_eq!(world.resident(), "");
    let waiting = world.ask('c').unwrap();
    world.forget('c');
    world.load('c', Ok(()));
    assert!(world.answered[&waiting]);
    world.give_back('c');
    assert_eq!(world.resident(), "");
    world.lend('c');
    world.give_back('c');
    assert_eq!(world.resident(), "c", "who asks again names it again");
}

#[test]
fn the_least_recently_lent_goes_first_and_no_more_than_needed() {
    let mut world = World::new(3, 9, 2);
    for adapter in ['a', 'b', 'c', 'a'] {
        world.lend(adapter);
        world.give_back(adapter);
    }
    world.lend('d');
    assert_eq!(world.resident(), "acd");
}

#[test]
fn a_leased_adapter_stays_and_its_return_lets_the_next_in() {
    let mut world = World::new(1, 9, 2);
    world.lend('a');
    let cold = world.ask('b').unwrap();
    world.pass(PATIENCE * 10);
    assert!(world.loading.is_empty());
    world.give_back('a');
    world.load('b', Ok(()));
    assert!(world.answered[&cold]);
    assert_eq!(world.resident(), "b");
}

#[test]
fn a_census_has_what_is_lent_first_and_what_is_waited_for_once() {
    let mut world = World::new(2, 9, 1);
    let lists = |world: &World| {
        let (resident, awaited) = world.line.census(world.now);
        [resident, awaited].map(|list| list.into_iter().map(letter).collect::<String>())
    };
    world.ask('a').unwrap();
    assert_eq!(lists(&world), ["", "a"]);
    world.load('a', Ok(()));
    world.used(ME, 'b');
    assert_eq!(lists(&world), ["ab", ""], "b was used last, and a is lent");
    world.ask('b').unwrap();
    for _ in 0..2 {
        world.ask('c').unwrap();
    }
    assert_eq!(lists(&world)[1], "c");
}

#[test]
fn what_can_never_fit_is_refused_at_once() {
    let mut world = World::new(2, 9, 2);
    world.sizes.insert('x', 3);
    let refused = world.ask('x').unwrap_err();
    assert!(matches!(refused, NotLent::TooLarge { bytes: 3, budget: 2 }), "{refused}");
}
