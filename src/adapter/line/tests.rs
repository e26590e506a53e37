//! The line and everything outside of it, in a small world.

mod loads;
mod owners;
mod ratios;
mod room;
mod traffic;
mod turns;

use std::collections::BTreeMap;

use super::*;
use crate::adapter::LoadError;

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
