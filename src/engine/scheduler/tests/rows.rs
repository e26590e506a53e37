//! What prompts get of a step beside answers, and beside each other.

use super::*;

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
