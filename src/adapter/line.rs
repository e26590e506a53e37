//! Who gets an adapter, who waits, and what makes room: the policy of the host cache.
//!
//! Pure: no thread, no lock, no clock (the time is passed in), no file. Each event is one method; what has to happen
//! outside comes back as [`Orders`].
//!
//! - Memory is reserved before a load begins. Resident and reserved bytes together never exceed the budget.
//! - An adapter with a lease is never evicted.
//! - Whoever cannot be served at once stands in one line, first come, first served; requests for one adapter share its
//!   place, and one load serves them all. Nobody overtakes the head, so a large adapter is not starved by small ones.
//! - Idle adapters make room at once, in the order of [`uses`]: what was used once before what is used again and again.
//!   When they do not suffice for [`PATIENCE`], the head *recalls* leased ones: a recalled adapter takes no new lease,
//!   its askers join the line, and with its last lease it can go. So the head waits for leases that exist, never for
//!   leases yet to come, and hot adapters cannot starve a cold one.
//! - A recall ends when the head is served or leaves. What was recalled and is still here serves its askers again.
//! - Each request has an [`Owner`], who may have a portion of the memory. What it asks for beyond that takes the place of
//!   its own idle adapters; where all of these are in use, it is *held*, out of the line and in nobody else's way. No
//!   load for others takes an owner's adapters below what is kept for it.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use lru::LruCache;

use self::{loads::Failed, owners::Account, uses::Uses};
pub(super) use self::{
    orders::{Asked, Load, Orders, Ticket, Waited, Want},
    owners::{Owner, Portion, Portions},
    standing::{Counts, Standing},
};
use super::NotLent;
use crate::lora::Digest;

mod head;
mod loads;
mod orders;
mod owners;
mod standing;
mod uses;

/// How long the head of the line waits for adapters to fall idle before it recalls leased ones: long enough for
/// traffic with gaps to leave one, short beside the answer that a lease is for.
pub(super) const PATIENCE: Duration = Duration::from_millis(100);

/// Of how many evicted adapters it is remembered when they were used: 2 MB.
const PAST: NonZeroUsize = NonZeroUsize::new(16_384).expect("not 0");

/// One owner's requests that its portion has no room for may be this part of all that wait.
const HELD: usize = 4;

/// The bounds of a line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Bytes that resident and loading adapters may take together.
    pub(super) budget: usize,
    /// Requests that may wait at once, for a load or for room.
    pub(super) waiting: usize,
    /// Loads at once.
    pub(super) loads: NonZeroUsize,
}

/// The state of the cache. `V` is a loaded adapter, `W` the way to reach whoever waits.
#[derive(Debug)]
pub(super) struct Line<V, W> {
    bounds: Bounds,
    portions: Portions,
    /// In memory.
    resident: HashMap<Digest, Resident<V>>,
    /// Being loaded, their bytes reserved.
    loading: HashMap<Digest, Loading<W>>,
    /// Waiting for room (or, while they are recalled, for their turn), the oldest first.
    places: VecDeque<Place<W>>,
    /// All owners that have claims or wait for one.
    accounts: HashMap<Owner, Account<W>>,
    /// Owners with requests that are held.
    held_up: BTreeSet<Owner>,
    /// When what is not claimed any more was used.
    past: LruCache<(Owner, Digest), Uses>,
    /// Loads that failed a moment ago.
    failed: HashMap<Digest, Failed>,
    /// Resident or being loaded, and to go with their last lease: nothing names them any more.
    forgotten: HashSet<Digest>,
    /// Sum over `resident`.
    resident_bytes: usize,
    /// Sum over the resident without a lease.
    idle_bytes: usize,
    /// Resident, and the head waits for them: no new leases.
    recalled: HashSet<Digest>,
    /// Sum over `recalled`.
    recalled_bytes: usize,
    /// Sum over `loading`.
    reserved_bytes: usize,
    /// Waiters of `loading` and `places`, and those who are held.
    waiting: usize,
    /// The next ticket's number.
    next: u64,
    /// Uses so far.
    turn: u64,
    /// Bytes of all loads so far.
    loaded: u64,
    counts: Counts,
}

#[derive(Debug)]
struct Resident<V> {
    value: Arc<V>,
    bytes: usize,
    leases: usize,
    /// Who has a claim on it; never empty.
    owners: Vec<Owner>,
}

#[derive(Debug)]
struct Loading<W> {
    bytes: usize,
    /// Who has a claim on it; never empty.
    owners: Vec<Owner>,
    waiters: Vec<Waiter<W>>,
}

#[derive(Debug)]
struct Place<W> {
    digest: Digest,
    bytes: usize,
    /// In order of arrival; never empty.
    waiters: Vec<Waiter<W>>,
}

#[derive(Debug)]
struct Waiter<W> {
    number: u64,
    want: Want,
    since: Instant,
    reply: W,
}

impl<V, W> Line<V, W> {
    /// An empty cache.
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            portions: Portions::default(),
            resident: HashMap::new(),
            loading: HashMap::new(),
            places: VecDeque::new(),
            accounts: HashMap::new(),
            held_up: BTreeSet::new(),
            past: LruCache::new(PAST),
            failed: HashMap::new(),
            forgotten: HashSet::new(),
            resident_bytes: 0,
            idle_bytes: 0,
            recalled: HashSet::new(),
            recalled_bytes: 0,
            reserved_bytes: 0,
            waiting: 0,
            next: 0,
            turn: 0,
            loaded: 0,
            counts: Counts::default(),
        }
    }

    /// A request wants an adapter.
    pub(super) fn ask(
        &mut self,
        want: Want,
        reply: W,
        now: Instant,
    ) -> Result<(Asked<V>, Orders<V, W>), NotLent> {
        let mut orders = Orders::none();
        self.check(want, now)?;
        let had_claim = self.has_claim(want);
        if !self.is_held(want, now) && self.claim(want, now, &mut orders) {
            self.claim_of(want).busy += 1;
            if let Some(value) = self.lend(want, now) {
                self.counts.hits += 1;
                // What its owner gave up for it, or need not keep beside it, may have been in somebody's way.
                if !had_claim {
                    self.go_on(now, &mut orders);
                }
                return Ok((Asked::Lent(value), orders));
            }
            let ticket = self.wait(want, reply, now, Self::join);
            self.go_on(now, &mut orders);
            return Ok((Asked::Waits(ticket), orders));
        }
        let held = self.accounts.get(&want.owner).map_or(0, |account| account.held.len());
        if self.waiting >= self.bounds.waiting || held >= self.bounds.waiting.div_ceil(HELD) {
            let most = self.portions.portion(want.owner).most;
            return Err(NotLent::PortionInUse { most });
        }
        let ticket = self.wait(want, reply, now, Self::hold);
        Ok((Asked::Waits(ticket), orders))
    }

    /// Refuses what is not worth waiting for.
    fn check(&self, want: Want, now: Instant) -> Result<(), NotLent> {
        let Want { owner, digest, bytes } = want;
        let most = self.portions.portion(owner).most;
        if bytes > most {
            return Err(NotLent::LargerThanPortion { bytes, most });
        }
        if self.resident.contains_key(&digest) && !self.recalled.contains(&digest) {
            return Ok(());
        }
        if let Some(error) = self.failure(&digest, now) {
            return Err(NotLent::Failed(error));
        }
        // What is kept for others is not there, whether or not they use it now: it could be waited for in vain.
        let budget = self.bounds.budget - self.portions.kept_from(owner);
        if bytes > budget {
            return Err(NotLent::TooLarge { bytes, budget });
        }
        if self.waiting >= self.bounds.waiting {
            return Err(NotLent::Crowded { waiting: self.waiting });
        }
        Ok(())
    }

    /// A waiter went away. What it waited for, where it still did; otherwise its answer has been given.
    pub(super) fn leave(&mut self, ticket: Ticket, now: Instant) -> (Option<Waited>, Orders<V, W>) {
        let Want { owner, digest, .. } = ticket.want;
        let mut orders = Orders::none();
        let waited = if self.let_go(ticket) {
            Some(Waited::ForPortion(self.portions.portion(owner).most))
        } else if let Some(loading) = self.loading.get_mut(&digest) {
            // The load goes on: its work is half done and the next request may want it.
            let left = remove(&mut loading.waiters, ticket.number);
            left.map(|_| self.claim_of(ticket.want).busy -= 1).map(|()| Waited::ForRoom)
        } else {
            self.leave_place(ticket, now, &mut orders)
        };
        self.waiting -= usize::from(waited.is_some());
        self.go_on(now, &mut orders);
        (waited, orders)
    }

    /// Takes a waiter out that is held. Whether it was.
    fn let_go(&mut self, ticket: Ticket) -> bool {
        let owner = ticket.want.owner;
        let Some(account) = self.accounts.get_mut(&owner) else { return false };
        let Some(at) = account.held.iter().position(|waiter| waiter.number == ticket.number) else {
            return false;
        };
        account.held.remove(at);
        self.close_if_empty(owner);
        true
    }

    /// Takes a waiter out of the line.
    fn leave_place(
        &mut self,
        ticket: Ticket,
        now: Instant,
        orders: &mut Orders<V, W>,
    ) -> Option<Waited> {
        let digest = ticket.want.digest;
        let at = self.places.iter().position(|place| place.digest == digest)?;
        remove(&mut self.places[at].waiters, ticket.number)?;
        self.claim_of(ticket.want).busy -= 1;
        if self.claim_of(ticket.want).busy == 0 && !self.resident.contains_key(&digest) {
            self.give_up(ticket.want.owner, digest);
        }
        if self.places[at].waiters.is_empty() {
            self.places.remove(at);
            if at == 0 {
                self.end_recall(now, orders);
            }
        }
        Some(Waited::ForRoom)
    }

    /// A lease of a resident adapter ended.
    pub(super) fn returned(&mut self, want: Want, now: Instant) -> Orders<V, W> {
        let entry = self.resident.get_mut(&want.digest).expect("what is leased is never evicted");
        entry.leases -= 1;
        if entry.leases == 0 {
            self.idle_bytes += entry.bytes;
        }
        self.claim_of(want).busy -= 1;
        let mut orders = Orders::none();
        orders.dropped.extend(self.drop_forgotten(want.digest));
        self.go_on(now, &mut orders);
        orders
    }

    /// An adapter will not be asked for again: its memory is given back as soon as it has no lease.
    pub(super) fn forget(&mut self, digest: Digest, now: Instant) -> Orders<V, W> {
        self.failed.remove(&digest);
        if self.resident.contains_key(&digest) || self.loading.contains_key(&digest) {
            self.forgotten.insert(digest);
        }
        let mut orders = Orders::none();
        orders.dropped.extend(self.drop_forgotten(digest));
        self.go_on(now, &mut orders);
        orders
    }

    /// Owners have these portions from now on. What they have beyond them goes with their next load.
    pub(super) fn divide(&mut self, portions: Portions, now: Instant) -> Orders<V, W> {
        self.portions = portions;
        let mut orders = Orders::none();
        // Other adapters may be the ones to go.
        self.end_recall(now, &mut orders);
        self.go_on(now, &mut orders);
        orders
    }

    /// Takes out what is to go, if it is here and idle.
    fn drop_forgotten(&mut self, digest: Digest) -> Option<Arc<V>> {
        let idle = self.resident.get(&digest).is_some_and(|entry| entry.leases == 0);
        if !idle || !self.forgotten.remove(&digest) {
            return None;
        }
        Some(self.take_out(digest))
    }

    /// Time passed. To be called once a request has waited for [`PATIENCE`].
    pub(super) fn advance(&mut self, now: Instant) -> Orders<V, W> {
        let mut orders = Orders::none();
        self.go_on(now, &mut orders);
        orders
    }

    /// Counts one lease of an adapter that is here and not recalled, and that its owner has claimed.
    fn lend(&mut self, want: Want, now: Instant) -> Option<Arc<V>> {
        if self.recalled.contains(&want.digest) {
            return None;
        }
        let entry = self.resident.get_mut(&want.digest)?;
        if entry.leases == 0 {
            self.idle_bytes -= entry.bytes;
        }
        entry.leases += 1;
        let value = Arc::clone(&entry.value);
        self.touch(want.owner, want.digest, now);
        Some(value)
    }

    /// Gives a request its ticket, and puts it where it waits.
    fn wait(
        &mut self,
        want: Want,
        reply: W,
        since: Instant,
        place: impl FnOnce(&mut Self, Waiter<W>),
    ) -> Ticket {
        self.counts.misses += 1;
        self.waiting += 1;
        let number = self.next;
        self.next += 1;
        place(self, Waiter { number, want, since, reply });
        Ticket { want, number }
    }

    /// Adds a waiter to its adapter's load or place, or at the end of the line.
    fn join(&mut self, waiter: Waiter<W>) {
        let Want { digest, bytes, .. } = waiter.want;
        if let Some(loading) = self.loading.get_mut(&digest) {
            loading.waiters.push(waiter);
        } else if let Some(place) = self.places.iter_mut().find(|place| place.digest == digest) {
            place.waiters.push(waiter);
        } else {
            self.places.push_back(Place { digest, bytes, waiters: vec![waiter] });
        }
    }

    /// Goes on with whoever was waiting for what an event has brought.
    fn go_on(&mut self, now: Instant, orders: &mut Orders<V, W>) {
        for owner in self.held_up.clone() {
            self.admit(owner, now, orders);
        }
        self.move_up(now, orders);
    }
}

/// Takes one waiter out, if it is among these.
fn remove<W>(waiters: &mut Vec<Waiter<W>>, number: u64) -> Option<Waiter<W>> {
    let at = waiters.iter().position(|waiter| waiter.number == number)?;
    Some(waiters.remove(at))
}

#[cfg(test)]
mod tests;
