//! Who is served when: the order of the line, its bound, and what is recalled for its head.

use super::*;

#[test]
fn nobody_overtakes_the_head() {
    let mut world = World::new(4, 9, 2);
    world.sizes.insert('x', 3);
    world.lend('a');
    world.lend('b');
    world.ask('x').unwrap();
    world.ask('s').unwrap();
    assert!(world.loading.is_empty(), "s would fit, and x was here first");
    world.give_back('a');
    assert_eq!(world.loading, ['x']);
    world.give_back('b');
    assert_eq!(world.loading, ['x', 's']);
}

#[test]
fn one_adapter_takes_one_place_in_the_line() {
    let mut world = World::new(1, 9, 2);
    world.lend('a');
    let first = world.ask('b').unwrap();
    world.ask('c').unwrap();
    let second = world.ask('b').unwrap();
    assert_eq!(world.line.places.len(), 2);
    world.leave(first);
    assert_eq!(world.line.places.len(), 2, "somebody still waits for b");
    world.give_back('a');
    world.load('b', Ok(()));
    assert!(world.answered[&second]);
}

#[test]
fn a_recalled_adapter_takes_no_new_lease_until_the_head_is_served() {
    let mut world = World::new(2, 9, 2);
    world.lend('a');
    world.lend('b');
    let cold = world.ask('c').unwrap();
    world.pass(PATIENCE / 2);
    world.lend('b');
    world.lend('a');
    world.pass(PATIENCE / 2);
    world.lend('a');
    let late = world.ask('b').unwrap();
    assert!(world.waiting.contains_key(&late), "b was lent least recently, so it is recalled");
    world.give_back('b');
    assert!(world.loading.is_empty());
    world.give_back('b');
    assert_eq!(world.loading, ['c']);
    world.load('c', Ok(()));
    assert!(world.answered[&cold]);
    assert!(world.waiting.contains_key(&late));
    world.give_back('c');
    world.load('b', Ok(()));
    assert!(world.answered[&late], "hot adapters come back");
}

#[test]
fn idle_adapters_that_the_head_counts_on_are_kept_for_it() {
    let mut world = World::new(3, 9, 2);
    world.sizes.insert('x', 3);
    for adapter in ['a', 'b', 'c'] {
        world.lend(adapter);
    }
    world.give_back('a');
    world.give_back('b');
    world.ask('x').unwrap();
    world.pass(PATIENCE);
    let late = world.ask('a').unwrap();
    assert!(world.waiting.contains_key(&late), "or a and c could be lent in turn for ever");
    world.give_back('c');
    assert_eq!(world.loading, ['x']);
}

#[test]
fn when_the_head_leaves_recalled_adapters_are_lent_again() {
    let mut world = World::new(1, 9, 2);
    world.lend('a');
    let cold = world.ask('b').unwrap();
    world.pass(PATIENCE);
    let late = [world.ask('a').unwrap(), world.ask('a').unwrap()];
    assert!(late.iter().all(|request| world.waiting.contains_key(request)));
    world.leave(cold);
    assert!(late.iter().all(|request| world.answered[request]));
    assert_eq!(world.leases, ['a', 'a', 'a']);
}

#[test]
fn recalled_adapters_that_did_not_have_to_go_are_lent_again() {
    let mut world = World::new(2, 9, 2);
    world.lend('a');
    world.lend('b');
    let cold = world.ask('c').unwrap();
    world.pass(PATIENCE);
    let late = world.ask('a').unwrap();
    world.give_back('b');
    assert_eq!(world.loading, ['c']);
    assert!(world.answered[&late], "b made room instead of a");
    world.load('c', Ok(()));
    assert!(world.answered[&cold]);
}

#[test]
fn what_a_load_brings_can_be_recalled_for_the_next_head() {
    let mut world = World::new(2, 9, 2);
    world.sizes.insert('x', 2);
    world.lend('a');
    world.ask('b').unwrap();
    world.ask('x').unwrap();
    world.pass(PATIENCE);
    world.load('b', Ok(()));
    assert_eq!(world.line.recalled.len(), 2);
    world.give_back('a');
    world.give_back('b');
    assert_eq!(world.loading, ['x']);
}

#[test]
fn the_line_has_a_bound() {
    let mut world = World::new(1, 2, 2);
    world.ask('a').unwrap();
    let second = world.ask('b').unwrap();
    let refused = world.ask('b').unwrap_err();
    assert!(matches!(refused, NotLent::Crowded { waiting: 2 }), "{refused}");
    world.leave(second);
    world.ask('c').unwrap();
    world.load('a', Ok(()));
    world.lend('a');
}

#[test]
fn a_ticket_that_was_answered_can_leave_without_effect() {
    let mut world = World::new(1, 9, 2);
    let request = world.ask('a').unwrap();
    let ticket = world.waiting[&request].1;
    world.load('a', Ok(()));
    let (left, orders) = world.line.leave(ticket, world.now);
    assert_eq!(left, None);
    world.carry_out(orders);
}

/// Two hot adapters fill the budget, and each gets a new lease before its old one ends.
#[test]
fn constant_traffic_on_hot_adapters_does_not_starve_a_cold_one() {
    let mut world = World::new(2, 99, 2);
    world.lend('a');
    world.lend('b');
    let cold = world.ask('c').unwrap();
    let mut steps = 0;
    while !world.answered.contains_key(&cold) {
        for hot in ['a', 'b'] {
            world.ask(hot).unwrap();
            if world.leases.iter().filter(|leased| **leased == hot).count() > 1
                || world.line.recalled.contains(&digest(hot))
            {
                world.give_back(hot);
            }
        }
        world.pass(PATIENCE / 4);
        if world.loading.contains(&'c') {
            world.load('c', Ok(()));
        }
        steps += 1;
        assert!(steps < 8, "c starves");
    }
    assert!(steps >= 4, "nobody was recalled before the patience was over");
    world.give_back('c');
    while !world.waiting.is_empty() {
        let adapter = *world.loading.first().expect("something is on its way");
        world.load(adapter, Ok(()));
    }
    assert_eq!(world.resident(), "ab");
}
