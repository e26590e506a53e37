//! What each owner has, and what is left to it.

use super::*;

#[test]
fn an_owner_that_is_at_its_most_makes_room_with_what_it_does_not_use() {
    let mut world = World::new(4, 9, 2);
    world.divide(&[(0, 2)]);
    world.used(OTHER, 'x');
    for adapter in ['a', 'b', 'a', 'c'] {
        world.used(ME, adapter);
    }
    assert_eq!(world.resident(), "acx", "b was its own, and used before a");
    let (standing, most) = (world.line.standing(), world.line.accounts[&ME].charged);
    assert_eq!((standing.resident_bytes, most, standing.counts.evictions), (3, 2, 1));
    world.sizes.insert('y', 3);
    let refused = world.ask('y').unwrap_err();
    assert!(matches!(refused, NotLent::LargerThanPortion { bytes: 3, most: 2 }), "{refused}");
    world.used(OTHER, 'y');
}

#[test]
fn an_owner_whose_portion_is_in_use_waits_and_is_in_nobodys_way() {
    let mut world = World::new(4, 9, 2);
    world.divide(&[(0, 1)]);
    world.lend('a');
    let held = world.ask('b').unwrap();
    world.used(OTHER, 'x');
    assert!(world.waiting.contains_key(&held));
    world.give_back('a');
    assert_eq!(world.loading, ['b']);
    world.load('b', Ok(()));
    assert_eq!(world.resident(), "bx");
    let held = world.ask('a').unwrap();
    let (_, ticket) = world.waiting.remove(&held).unwrap();
    let (waited, orders) = world.line.leave(ticket, world.now);
    assert_eq!(waited, Some(Waited::ForPortion(1)));
    world.carry_out(orders);
    world.lend('b');
}

#[test]
fn one_owner_cannot_fill_the_line_with_what_its_portion_has_no_room_for() {
    let mut world = World::new(4, 8, 2);
    world.divide(&[(0, 1)]);
    world.lend('a');
    world.ask('b').unwrap();
    world.ask('c').unwrap();
    let refused = world.ask('d').unwrap_err();
    assert!(matches!(refused, NotLent::PortionInUse { most: 1 }), "{refused}");
    world.used(OTHER, 'x');
}

#[test]
fn what_an_owner_uses_all_the_time_does_not_starve_what_it_uses_seldom() {
    let mut world = World::new(4, 9, 2);
    world.divide(&[(0, 1)]);
    world.lend('a');
    let cold = world.ask('b').unwrap();
    world.lend('a');
    world.pass(PATIENCE);
    let late = world.ask('a').unwrap();
    assert!(world.waiting.contains_key(&late));
    world.give_back('a');
    world.give_back('a');
    world.load('b', Ok(()));
    assert!(world.answered[&cold]);
    world.give_back('b');
    world.load('a', Ok(()));
    assert!(world.answered[&late]);
}

#[test]
fn the_same_content_is_charged_to_each_owner_and_tells_none_of_the_other() {
    let mut world = World::new(4, 9, 2);
    world.divide(&[(0, 1), (0, 1)]);
    world.used(ME, 'a');
    assert!(!world.line.holds(OTHER, &digest('a')));
    world.used(OTHER, 'a');
    assert!(world.line.holds(OTHER, &digest('a')));
    assert_eq!(world.line.accounts[&OTHER].charged, 1);
    assert_eq!(world.line.standing().counts.loads, 1, "there is one copy");
    world.used(OTHER, 'b');
    assert!(!world.line.holds(OTHER, &digest('a')), "as if it had been alone");
    assert!(world.line.holds(ME, &digest('a')));
    assert_eq!(world.resident(), "ab");
    world.used(ME, 'c');
    assert_eq!(world.resident(), "bc", "with its last owner it goes");
}

#[test]
fn what_is_kept_for_an_owner_is_left_to_it_by_others() {
    let mut world = World::new(8, 9, 2);
    world.divide(&[(2, 8)]);
    for adapter in ['a', 'b', 'c'] {
        world.used(ME, adapter);
    }
    for adapter in 'd'..='z' {
        world.used(OTHER, adapter);
    }
    assert!(world.resident().starts_with("bc"), "{}", world.resident());
    world.sizes.insert('d', 7);
    let refused = world.ask_for(OTHER, 'd').unwrap_err();
    assert!(matches!(refused, NotLent::TooLarge { bytes: 7, budget: 6 }), "{refused}");
    world.sizes.insert('e', 8);
    world.used(ME, 'e');
    assert_eq!(world.resident(), "e", "its own may go for its own");
}

#[test]
fn what_an_owner_gives_up_for_what_is_here_serves_the_head_at_once() {
    let mut world = World::new(8, 9, 2);
    world.sizes = [('a', 2), ('b', 2), ('c', 4), ('d', 2)].into();
    world.divide(&[(0, 8), (1, 2)]);
    for owner in [OTHER, ME] {
        world.used(owner, 'a');
    }
    world.lend('b');
    world.lend('c');
    world.ask('d').unwrap();
    assert!(world.loading.is_empty(), "a is kept for its other owner");
    world.ask_for(OTHER, 'b').unwrap();
    assert_eq!(world.loading, ['d']);
}

#[test]
fn the_head_recalls_nothing_that_is_kept_for_others() {
    let mut world = World::new(4, 9, 2);
    world.divide(&[(1, 4)]);
    for adapter in ['a', 'b'] {
        world.lend(adapter);
    }
    let others = ['x', 'y'].map(|adapter| world.ask_for(OTHER, adapter).unwrap());
    world.load('x', Ok(()));
    world.load('y', Ok(()));
    assert!(others.iter().all(|request| world.answered[request]));
    world.sizes.insert('z', 3);
    world.ask_for(OTHER, 'z').unwrap();
    world.pass(PATIENCE);
    let recalled = |adapter| world.line.recalled.contains(&digest(adapter));
    assert!(recalled('a') && !recalled('b') && recalled('x') && recalled('y'));
    for (owner, adapter) in [(ME, 'b'), (ME, 'a'), (OTHER, 'x'), (OTHER, 'y')] {
        world.give_back_of(owner, adapter);
    }
    assert_eq!(world.loading, ['z']);
    assert_eq!(world.resident(), "b");
}
