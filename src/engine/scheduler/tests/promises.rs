//! Every promise, in any traffic.

use proptest::prelude::*;

use super::*;

fn settings() -> impl Strategy<Value = Settings> {
    (1..12_usize, 1..40_usize, 1..10_usize, 1..4_usize, 0..8_usize).prop_map(
        |(pages, step_tokens, max_running, slots, guesses)| Settings {
            context: usize::MAX,
            pages,
            step_tokens,
            max_running: max_running.min(step_tokens),
            max_waiting: usize::MAX,
            max_wait: Duration::MAX,
            slots,
            keep_prefixes: true,
            guesses,
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
}
