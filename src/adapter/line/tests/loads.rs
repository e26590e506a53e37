//! What a load serves, and what becomes of those that fail.

use super::{
    super::loads::{FAILURE_MEMORY, SETBACK_MEMORY},
    *,
};
use crate::store::StoreError;

#[test]
fn one_load_serves_all_who_ask_meanwhile() {
    let mut world = World::new(2, 9, 2);
    let requests: Vec<_> = (0..5).map(|_| world.ask('a').unwrap()).collect();
    assert_eq!(world.loading, ['a']);
    world.load('a', Ok(()));
    assert!(requests.iter().all(|request| world.answered[request]));
    assert_eq!(world.leases.len(), 5);
    world.ask('a').unwrap();
    let counts = world.line.standing().counts;
    assert_eq!((counts.hits, counts.misses, counts.loads), (1, 5, 1));
}

#[test]
fn a_failed_load_fails_those_who_wait_for_it_and_is_remembered_for_a_while() {
    let mut world = World::new(2, 9, 2);
    let (a, b) = (world.ask('a').unwrap(), world.ask('b').unwrap());
    world.load('a', Err(()));
    assert!(!world.answered[&a]);
    assert!(matches!(world.ask('a'), Err(NotLent::Failed(_))));
    world.load('b', Ok(()));
    assert!(world.answered[&b]);
    world.pass(FAILURE_MEMORY);
    world.lend('a');
    let counts = world.line.standing().counts;
    assert_eq!((counts.loads, counts.failures), (3, 1));
}

#[test]
fn a_hundred_requests_for_a_broken_adapter_are_one_load() {
    let mut world = World::new(2, 200, 2);
    let first: Vec<_> = (0..50).map(|_| world.ask('a').unwrap()).collect();
    world.load('a', Err(()));
    assert!(first.iter().all(|request| !world.answered[request]));
    for _ in 0..50 {
        assert!(matches!(world.ask('a'), Err(NotLent::Failed(_))));
        world.pass(FAILURE_MEMORY / 100);
    }
    assert_eq!(world.line.standing().counts.loads, 1);
    world.line.retry(digest('a'));
    world.lend('a');
}

#[test]
fn what_passes_by_itself_is_not_held_against_an_adapter_for_long() {
    let mut world = World::new(2, 9, 2);
    let down = || StoreError::Unavailable { why: "down".to_owned() };
    for error in [LoadError::Store(down()), LoadError::NoMemory { bytes: 1 }, LoadError::BrokenOff]
    {
        world.ask('a').unwrap();
        world.loading.clear();
        let orders = world.line.failed(digest('a'), Arc::new(error), world.now);
        world.carry_out(orders);
        assert!(world.ask('a').is_err());
        world.pass(SETBACK_MEMORY);
    }
    world.ask('a').unwrap();
    world.loading.clear();
    let other_size = LoadError::Memory { reserved: 1, needed: 2 };
    let orders = world.line.failed(digest('a'), Arc::new(other_size), world.now);
    world.carry_out(orders);
    world.lend('a');
}

#[test]
fn no_more_loads_at_once_than_loaders() {
    let mut world = World::new(9, 9, 2);
    for adapter in ['a', 'b', 'c'] {
        world.ask(adapter).unwrap();
    }
    assert_eq!(world.loading, ['a', 'b']);
    world.load('b', Err(()));
    assert_eq!(world.loading, ['a', 'c']);
}

#[test]
fn a_load_that_everybody_left_still_fills_the_cache() {
    let mut world = World::new(1, 9, 2);
    let request = world.ask('a').unwrap();
    world.leave(request);
    world.load('a', Ok(()));
    world.ask('a').unwrap();
    assert_eq!(world.leases, ['a']);
}
