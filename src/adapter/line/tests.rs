//! The line and everything outside of it, in a small world.

mod ratios;

use std::collections::BTreeMap;

use proptest::{prelude::*, sample::Index};

use super::*;
use crate::store::StoreError;

/// A line and everything outside of it. Adapters are letters.
struct World {
    line: Line<char, u32>,
    sizes: BTreeMap<char, usize>,
    now: Instant,
    /// Live leases, and for whom each is.
    leases: Vec<char>,
    lent: Vec<Want>,
    /// Ordered loads that have not ended.
    loading: Vec<char>,
    /// Requests without an answer.
    waiting: BTreeMap<u32, (char, Ticket)>,
    /// What waiting requests were answered: true for a lease.
    answered: BTreeMap<u32, bool>,
    asked: u32,
    /// Adapters that went because they were forgotten, or for others of their owner.
    dropped: u64,
    /// Adapters that made room for a load.
    evicted: u64,
    /// As it was after the event before: for whom what was in memory was there, but for what was recalled; and all that
    /// each owner claimed.
    had: BTreeMap<char, Vec<Owner>>,
    claimed: BTreeMap<Owner, Vec<Digest>>,
}

const ME: Owner = Owner(0);
const OTHER: Owner = Owner(1);

fn digest(adapter: char) -> Digest {
    Digest::of(adapter.to_string().as_bytes(), b"")
}

fn letter(of: Digest) -> char {
    ('a'..='z').find(|letter| digest(*letter) == of).unwrap()
}

impl World {
    /// One byte for each adapter, unless `sizes` says otherwise.
    fn new(budget: usize, waiting: usize, loads: usize) -> Self {
        let bounds = Bounds { budget, waiting, loads: NonZeroUsize::new(loads).unwrap() };
        Self {
            line: Line::new(bounds),
            sizes: BTreeMap::new(),
            now: Instant::now(),
            leases: Vec::new(),
            lent: Vec::new(),
            loading: Vec::new(),
            waiting: BTreeMap::new(),
            answered: BTreeMap::new(),
            asked: 0,
            dropped: 0,
            evicted: 0,
            had: BTreeMap::new(),
            claimed: BTreeMap::new(),
        }
    }

    fn size(&self, adapter: char) -> usize {
        self.sizes.get(&adapter).copied().unwrap_or(1)
    }

    /// Asks, and returns the request's number; it is waiting, or a lease was added.
    fn ask(&mut self, adapter: char) -> Result<u32, NotLent> {
        self.ask_for(ME, adapter)
    }

    fn ask_for(&mut self, owner: Owner, adapter: char) -> Result<u32, NotLent> {
        let want = Want { owner, digest: digest(adapter), bytes: self.size(adapter) };
        self.asked += 1;
        let request = self.asked;
        let (asked, orders) = self.line.ask(want, request, self.now)?;
        match asked {
            Asked::Lent(value) => {
                assert_eq!(*value, adapter);
                self.leases.push(adapter);
                self.lent.push(want);
                self.answered.insert(request, true);
            }
            Asked::Waits(ticket) => {
                self.waiting.insert(request, (adapter, ticket));
            }
        }
        self.carry_out(orders);
        Ok(request)
    }

    fn carry_out(&mut self, orders: Orders<char, u32>) {
        for gone in orders.dropped {
            assert!(!self.leases.contains(&gone), "{gone} was dropped while leased");
            self.dropped += 1;
        }
        for (request, of, answer) in orders.answers {
            let (adapter, _) = self.waiting.remove(&request).expect("answered once");
            assert_eq!(digest(adapter), of.digest);
            self.answered.insert(request, answer.is_ok());
            if let Ok(value) = answer {
                assert_eq!(*value, adapter);
                self.leases.push(adapter);
                self.lent.push(of);
            }
        }
        self.check_kept(&orders.loads);
        for load in orders.loads {
            let adapter = letter(load.digest);
            assert!(!self.loading.contains(&adapter), "{adapter} is loaded twice at once");
            self.loading.push(adapter);
            for victim in load.evicted {
                assert!(!self.leases.contains(&victim), "{victim} was evicted while leased");
                self.evicted += 1;
            }
        }
        self.check();
        self.remember();
    }

    /// Adapters that make room for those of others leave their owners what is kept for them. What an owner itself asked
    /// for or claimed in the event may have cost it more.
    fn check_kept(&self, loads: &[Load<char>]) {
        let line = &self.line;
        let asks =
            |owner| loads.iter().any(|load| line.loading[&load.digest].owners.contains(owner));
        for victim in loads.iter().flat_map(|load| &load.evicted) {
            for owner in self.had.get(&**victim).into_iter().flatten().filter(|owner| !asks(owner))
            {
                let account = line.accounts.get(owner);
                let mut claims = account.into_iter().flat_map(|account| account.claims.keys());
                if claims.all(|of| self.claimed[owner].contains(of)) {
                    let left = account.map_or(0, |account| account.resident);
                    let least = line.portions.portion(*owner).least;
                    assert!(left >= least, "{victim} leaves {left} of {least} to {owner:?}");
                }
            }
        }
    }

    fn remember(&mut self) {
        let line = &self.line;
        let accounts = line.accounts.iter();
        self.claimed = accounts
            .map(|(owner, account)| (*owner, account.claims.keys().copied().collect()))
            .collect();
        let stays = line.resident.iter().filter(|(of, _)| !line.recalled.contains(*of));
        self.had = stays.map(|(of, entry)| (letter(*of), entry.owners.clone())).collect();
    }

    fn load(&mut self, adapter: char, succeeds: Result<(), ()>) {
        let at = self.loading.iter().position(|loading| *loading == adapter).unwrap();
        self.loading.remove(at);
        let orders = match succeeds {
            Ok(()) => self.line.loaded(digest(adapter), adapter, self.now),
            Err(()) => self.line.failed(digest(adapter), Arc::new(LoadError::Gone), self.now),
        };
        self.carry_out(orders);
    }

    fn give_back(&mut self, adapter: char) {
        let owner = self.lent.iter().find(|want| want.digest == digest(adapter)).unwrap().owner;
        self.give_back_of(owner, adapter);
    }

    fn give_back_of(&mut self, owner: Owner, adapter: char) {
        let its = |want: &Want| (want.owner, want.digest) == (owner, digest(adapter));
        let at = self.lent.iter().position(its).unwrap();
        self.leases.remove(at);
        let want = self.lent.remove(at);
        let orders = self.line.returned(want, self.now);
        self.carry_out(orders);
    }

    fn forget(&mut self, adapter: char) {
        let orders = self.line.forget(digest(adapter), self.now);
        self.carry_out(orders);
        let idle = !self.leases.contains(&adapter) && !self.loading.contains(&adapter);
        assert!(!idle || !self.line.resident.contains_key(&digest(adapter)));
    }

    fn leave(&mut self, request: u32) {
        let (_, ticket) = self.waiting.remove(&request).unwrap();
        let (left, orders) = self.line.leave(ticket, self.now);
        assert!(left.is_some());
        self.carry_out(orders);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        let orders = self.line.advance(self.now);
        self.carry_out(orders);
    }

    /// Asks for an adapter that there is room for, and loads it.
    fn lend(&mut self, adapter: char) {
        let request = self.ask(adapter).unwrap();
        if self.loading.contains(&adapter) {
            self.load(adapter, Ok(()));
        }
        assert_eq!(self.answered.get(&request), Some(&true), "{adapter} should be lent");
    }

    fn resident(&self) -> String {
        let mut letters: Vec<_> = self.line.resident.keys().map(|of| letter(*of)).collect();
        letters.sort_unstable();
        letters.into_iter().collect()
    }

    /// What holds after every event.
    fn check(&self) {
        let line = &self.line;
        let resident = |keep: &dyn Fn(&Digest, &Resident<char>) -> bool| -> usize {
            let kept = line.resident.iter().filter(|(of, entry)| keep(of, entry));
            kept.map(|(_, entry)| entry.bytes).sum()
        };
        assert_eq!(line.resident_bytes, resident(&|_, _| true));
        assert_eq!(line.idle_bytes, resident(&|_, entry| entry.leases == 0));
        assert_eq!(line.recalled_bytes, resident(&|of, _| line.recalled.contains(of)));
        assert_eq!(line.reserved_bytes, line.loading.values().map(|l| l.bytes).sum::<usize>());
        assert!(line.resident_bytes + line.reserved_bytes <= line.bounds.budget);
        assert!(line.loading.len() <= line.bounds.loads.get());
        assert_eq!(line.loading.len(), self.loading.len());
        assert_eq!(line.waiting, self.waiting.len());
        assert!(line.waiting <= line.bounds.waiting);
        for of in &line.forgotten {
            let leased = line.resident.get(of).is_some_and(|entry| entry.leases > 0);
            assert!(leased || line.loading.contains_key(of), "what is forgotten and idle goes");
        }
        for (of, entry) in &line.resident {
            let letter = letter(*of);
            let live = self.leases.iter().filter(|leased| **leased == letter).count();
            assert_eq!(entry.leases, live, "leases of {letter}");
            assert!(!entry.owners.is_empty());
            // One reference is the cache's own: no lease holds the value in this world.
            assert_eq!(Arc::strong_count(&entry.value), 1);
            assert!(!line.loading.contains_key(of));
        }
        self.check_accounts();
        assert!(line.places.iter().all(|place| !place.waiters.is_empty()));
        let head = line.places.front();
        assert!(head.is_none_or(|head| !line.resident.contains_key(&head.digest)));
        assert!(head.is_some() || line.recalled.is_empty());
        if let Some(head) = head {
            let room = line.victims(head, self.now).is_some();
            let busy = line.loading.len() == line.bounds.loads.get();
            assert!(!room || busy, "the head could be served");
            assert!(
                room || line.portions.keep_anything()
                    || line.free_bytes() + line.idle_bytes < head.bytes
            );
            let late = self.now - head.waiters[0].since >= PATIENCE;
            let all = line.recalled.len() == line.resident.len() || line.portions.keep_anything();
            let enough = line.free_bytes() + line.recalled_bytes >= head.bytes;
            assert!(!late || busy || enough || all, "the head waits for leases yet to come");
        }
    }

    /// What holds of owners after every event.
    fn check_accounts(&self) {
        let line = &self.line;
        for (owner, account) in &line.accounts {
            assert!(!account.is_empty());
            assert_eq!(line.held_up.contains(owner), !account.held.is_empty());
            assert!(account.charged <= line.portions.portion(*owner).most);
            assert_eq!(account.charged, account.claims.values().map(|c| c.bytes).sum::<usize>());
            let resident = account.claims.iter().filter(|(of, _)| line.holds(*owner, of));
            assert_eq!(account.resident, resident.map(|(_, c)| c.bytes).sum::<usize>());
            for (of, claim) in &account.claims {
                let its = |want: &Want| (want.owner, want.digest) == (*owner, *of);
                let loading = line.loading.get(of);
                let places = line.places.iter().flat_map(|place| &place.waiters);
                let waiters = loading.into_iter().flat_map(|loading| &loading.waiters);
                let waiting = waiters.chain(places).filter(|waiter| its(&waiter.want)).count();
                let lent = self.lent.iter().filter(|want| its(want)).count();
                assert_eq!(claim.busy, waiting + lent);
                let comes = loading.is_some_and(|loading| loading.owners.contains(owner));
                assert!(line.holds(*owner, of) || comes || waiting > 0, "a claim on nothing");
            }
        }
        let owners =
            line.resident.iter().flat_map(|(of, entry)| entry.owners.iter().map(move |o| (o, of)));
        assert!({ owners }.all(|(owner, of)| line.accounts[owner].claims.contains_key(of)));
    }

    /// The portions of owners 0, 1 and so on: what is kept for each, and what each may have.
    fn divide(&mut self, portions: &[(usize, usize)]) {
        let each = (0..)
            .map(Owner)
            .zip(portions.iter().map(|(least, most)| Portion { least: *least, most: *most }));
        let (portions, too_much) = Portions::of(self.line.bounds.budget, each);
        assert_eq!(too_much, None);
        let orders = self.line.divide(portions, self.now);
        self.carry_out(orders);
    }

    /// Lends what there is room for, and takes it back.
    fn used(&mut self, owner: Owner, adapter: char) {
        let request = self.ask_for(owner, adapter).unwrap();
        if self.loading.contains(&adapter) {
            self.load(adapter, Ok(()));
        }
        assert_eq!(self.answered.get(&request), Some(&true), "{adapter} should be lent");
        self.give_back_of(owner, adapter);
    }
}

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

#[test]
fn what_can_never_fit_is_refused_at_once() {
    let mut world = World::new(2, 9, 2);
    world.sizes.insert('x', 3);
    let refused = world.ask('x').unwrap_err();
    assert!(matches!(refused, NotLent::TooLarge { bytes: 3, budget: 2 }), "{refused}");
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
