//! Whatever happens, in any order.

use proptest::{prelude::*, sample::Index};

use super::*;

#[derive(Clone, Debug)]
enum Event {
    Ask(u32, char),
    Leave(Index),
    Return(Index),
    Load(Index),
    Fail(Index),
    Forget(char),
    Pass(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0..3_u32, prop::char::range('a', 'f')).prop_map(|(owner, of)| Event::Ask(owner, of)),
        1 => any::<Index>().prop_map(Event::Leave),
        4 => any::<Index>().prop_map(Event::Return),
        3 => any::<Index>().prop_map(Event::Load),
        1 => any::<Index>().prop_map(Event::Fail),
        1 => prop::char::range('a', 'f').prop_map(Event::Forget),
        3 => (0..200_u64).prop_map(Event::Pass),
    ]
}

impl World {
    fn happen(&mut self, event: &Event) {
        let one = |index: &Index, of: &[char]| (!of.is_empty()).then(|| of[index.index(of.len())]);
        match event {
            Event::Ask(owner, adapter) => drop(self.ask_for(Owner(*owner), *adapter)),
            Event::Leave(index) => {
                let waiting: Vec<_> = self.waiting.keys().copied().collect();
                if !waiting.is_empty() {
                    self.leave(waiting[index.index(waiting.len())]);
                }
            }
            Event::Return(index) => {
                if let Some(adapter) = one(index, &self.leases) {
                    self.give_back(adapter);
                }
            }
            Event::Load(index) => {
                if let Some(adapter) = one(index, &self.loading) {
                    self.load(adapter, Ok(()));
                }
            }
            Event::Fail(index) => {
                if let Some(adapter) = one(index, &self.loading) {
                    self.load(adapter, Err(()));
                }
            }
            Event::Forget(adapter) => self.forget(*adapter),
            Event::Pass(milliseconds) => self.pass(Duration::from_millis(*milliseconds)),
        }
    }
}

proptest! {
    /// `World::check` holds the invariants after every event; this drives it and then lets everything end.
    #[test]
    fn whatever_happens_the_budget_holds_and_everybody_is_answered(
        budget in 3_usize..17,
        sizes in prop::collection::vec(0_usize..5, 6),
        loads in 1_usize..4,
        mosts in prop::collection::vec(1_usize..9, 0..3),
        kept in prop::bool::ANY,
        events in prop::collection::vec(event(), 0..200),
    ) {
        let mut world = World::new(budget, 12, loads);
        world.sizes = ('a'..='f').zip(sizes).collect();
        // No more than a quarter in all.
        let least = |most: usize| if kept { most.min(budget / 4 / 3) } else { 0 };
        world.divide(&mosts.iter().map(|most| (least(*most), *most)).collect::<Vec<_>>());
        for event in &events {
            world.happen(event);
        }
        // Leases end and loads finish: then nobody may be left waiting.
        while !world.leases.is_empty() || !world.loading.is_empty() {
            if let Some(adapter) = world.leases.first().copied() {
                world.give_back(adapter);
            } else {
                world.load(world.loading[0], Ok(()));
            }
        }
        prop_assert!(world.waiting.is_empty());
        prop_assert!(world.line.places.is_empty());
        let standing = world.line.standing();
        prop_assert_eq!(standing.loading_bytes, 0);
        prop_assert_eq!(standing.leased, 0);
        let Counts { loads, failures, evictions, .. } = standing.counts;
        prop_assert!(world.evicted <= evictions && evictions <= world.evicted + world.dropped);
        let gone = failures + world.evicted + world.dropped;
        prop_assert_eq!(loads, gone + standing.resident as u64);
    }

    /// Once it is late, the head is served when the leases of that moment have ended, though others keep asking and
    /// never return what they get.
    #[test]
    fn a_late_head_waits_for_no_lease_to_come(
        budget in 2_usize..6,
        events in prop::collection::vec(event(), 0..100),
        traffic in prop::collection::vec(prop::char::range('a', 'f'), 60),
    ) {
        let mut world = World::new(budget, 500, 2);
        for event in &events {
            world.happen(event);
        }
        while let Some(adapter) = world.loading.first().copied() {
            world.load(adapter, Ok(()));
        }
        world.pass(PATIENCE);
        let Some(cold) = world.line.places.front().map(|head| head.waiters[0].reply) else {
            return Ok(());
        };
        let mut traffic = traffic.into_iter();
        for old in world.leases.clone() {
            if !world.loading.is_empty() {
                break;
            }
            traffic.next().into_iter().for_each(|adapter| drop(world.ask(adapter)));
            world.give_back(old);
        }
        let begun = world.loading.first().copied().expect("the head's load");
        prop_assert_eq!(world.waiting[&cold].0, begun);
    }
}
