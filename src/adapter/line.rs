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
    cmp::Reverse,
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use lru::LruCache;

pub(super) use self::owners::{Owner, Portion, Portions};
use self::{
    owners::{Account, Taken},
    uses::{Candidate, Rank, Uses, in_order},
};
use super::{LoadError, NotLent};
use crate::lora::Digest;

mod owners;
mod uses;

/// How long the head of the line waits for adapters to fall idle before it recalls leased ones: long enough for
/// traffic with gaps to leave one, short beside the answer that a lease is for.
pub(super) const PATIENCE: Duration = Duration::from_millis(100);

/// How long a failed load answers for the next ones: a storm of requests reads a broken file once in that time, not
/// once each.
pub(super) const FAILURE_MEMORY: Duration = Duration::from_secs(5);

/// The same where the next load may well succeed: the store does not answer, or memory is short. Long enough for the
/// requests that are there already, and too short for anybody to see that it is over later than it is.
pub(super) const SETBACK_MEMORY: Duration = Duration::from_millis(250);

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

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Want {
    /// For whom.
    pub(super) owner: Owner,
    /// Which adapter.
    pub(super) digest: Digest,
    /// What it takes of memory once it is loaded.
    pub(super) bytes: usize,
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

#[derive(Debug)]
struct Failed {
    error: Arc<LoadError>,
    until: Instant,
}

/// Names one waiting request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    want: Want,
    number: u64,
}

/// The answer to a request, as far as there is one already.
#[derive(Debug)]
pub(super) enum Asked<V> {
    /// It was in memory; one lease is counted.
    Lent(Arc<V>),
    /// An answer will be among some later event's orders, unless the ticket leaves.
    Waits(Ticket),
}

/// What a request waited for that left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// A load, or room in the memory.
    ForRoom,
    /// Room in its owner's portion, which is this large.
    ForPortion(usize),
}

/// What the outside has to do after an event, in this order.
#[derive(Debug)]
#[must_use]
pub(super) struct Orders<V, W> {
    /// Waiters that have their answer, and what they asked for; with `Ok` one lease each is counted.
    pub(super) answers: Vec<(W, Want, Answer<V>)>,
    /// Adapters that nothing names any more, or that their owner has no room for: to be dropped outside of the lock.
    pub(super) dropped: Vec<Arc<V>>,
    /// Loads to begin. Each ends in exactly one call of [`Line::loaded`] or [`Line::failed`].
    pub(super) loads: Vec<Load<V>>,
}

/// What a waiter gets in the end.
pub(super) type Answer<V> = Result<Arc<V>, Arc<LoadError>>;

/// One load whose memory is reserved.
#[derive(Debug)]
pub(super) struct Load<V> {
    /// What to load.
    pub(super) digest: Digest,
    /// Bytes that are reserved for it.
    pub(super) bytes: usize,
    /// Adapters that made room: to be dropped before the load takes memory.
    pub(super) evicted: Vec<Arc<V>>,
}

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Requests served at once.
    pub(super) hits: u64,
    /// Requests that had to wait, whatever came of it.
    pub(super) misses: u64,
    /// Loads begun.
    pub(super) loads: u64,
    /// Of these, the ones of what had been dropped a while ago.
    pub(super) reloads: u64,
    /// Loads that failed.
    pub(super) failures: u64,
    /// Adapters dropped to make room.
    pub(super) evictions: u64,
}

/// How things stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) resident: usize,
    pub(super) resident_bytes: usize,
    pub(super) leased: usize,
    pub(super) loading: usize,
    pub(super) loading_bytes: usize,
    pub(super) waiting: usize,
    pub(super) counts: Counts,
}

impl<V, W> Orders<V, W> {
    fn none() -> Self {
        Self { answers: Vec::new(), dropped: Vec::new(), loads: Vec::new() }
    }
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

    /// Its files are others than those that could not be loaded, or in another place.
    pub(super) fn retry(&mut self, digest: Digest) {
        self.failed.remove(&digest);
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

    /// A load that was ordered is done.
    pub(super) fn loaded(&mut self, digest: Digest, value: V, now: Instant) -> Orders<V, W> {
        let mut orders = Orders::none();
        let Loading { bytes, owners, waiters } = self.end_load(digest);
        let value = Arc::new(value);
        let leases = waiters.len();
        self.waiting -= leases;
        self.resident_bytes += bytes;
        if leases == 0 {
            self.idle_bytes += bytes;
        }
        for owner in &owners {
            self.touch(*owner, digest, now);
            let account = self.accounts.get_mut(owner).expect("it has a claim");
            account.resident += account.claims[&digest].bytes;
        }
        let answer = |w: Waiter<W>| (w.reply, w.want, Ok(Arc::clone(&value)));
        orders.answers.extend(waiters.into_iter().map(answer));
        self.failed.remove(&digest);
        self.resident.insert(digest, Resident { value, bytes, leases, owners });
        orders.dropped.extend(self.drop_forgotten(digest));
        self.go_on(now, &mut orders);
        orders
    }

    /// A load that was ordered came to nothing: so do the requests that wait for it, and no others.
    pub(super) fn failed(
        &mut self,
        digest: Digest,
        error: Arc<LoadError>,
        now: Instant,
    ) -> Orders<V, W> {
        let mut orders = Orders::none();
        let Loading { owners, waiters, .. } = self.end_load(digest);
        for owner in owners {
            self.give_up(owner, digest);
        }
        self.forgotten.remove(&digest);
        self.counts.failures += 1;
        self.waiting -= waiters.len();
        let answer = |w: Waiter<W>| (w.reply, w.want, Err(Arc::clone(&error)));
        orders.answers.extend(waiters.into_iter().map(answer));
        self.failed.retain(|_, failed| now < failed.until);
        if let Some(memory) = remembered(&error) {
            self.failed.insert(digest, Failed { error, until: now + memory });
        }
        self.go_on(now, &mut orders);
        orders
    }

    /// Time passed. To be called once a request has waited for [`PATIENCE`].
    pub(super) fn advance(&mut self, now: Instant) -> Orders<V, W> {
        let mut orders = Orders::none();
        self.go_on(now, &mut orders);
        orders
    }

    /// Whether an adapter is in memory for this owner. Whether it is for others is not told.
    pub(super) fn holds(&self, owner: Owner, digest: &Digest) -> bool {
        self.resident.get(digest).is_some_and(|entry| entry.owners.contains(&owner))
    }

    /// Numbers for the operator.
    pub(super) fn standing(&self) -> Standing {
        Standing {
            resident: self.resident.len(),
            resident_bytes: self.resident_bytes,
            leased: self.resident.values().filter(|entry| entry.leases > 0).count(),
            loading: self.loading.len(),
            loading_bytes: self.reserved_bytes,
            waiting: self.waiting,
            counts: self.counts,
        }
    }

    /// What is in memory, those that are lent first and then those that would stay the longest; and what requests wait for,
    /// in the order in which they get it.
    pub(super) fn census(&self, now: Instant) -> (Vec<Digest>, Vec<Digest>) {
        let ranked = self
            .resident
            .iter()
            .map(|(digest, entry)| ((entry.leases > 0, self.rank(digest, entry, now)), *digest));
        let mut ranked: Vec<_> = ranked.collect();
        ranked.sort_unstable_by_key(|(rank, _)| Reverse(*rank));
        let resident: Vec<_> = ranked.into_iter().map(|(_, digest)| digest).collect();
        let loading = self.loading.iter().filter(|(_, loading)| !loading.waiters.is_empty());
        let held = self.held_up.iter().flat_map(|owner| &self.accounts[owner].held);
        let places = self.places.iter().map(|place| place.digest);
        let wanted = loading.map(|(digest, _)| *digest).chain(places);
        let mut seen = HashSet::new();
        let awaited = wanted
            .chain(held.map(|waiter| waiter.want.digest))
            .filter(|digest| !self.resident.contains_key(digest) && seen.insert(*digest));
        let awaited = awaited.collect();
        (resident, awaited)
    }

    /// Why its last load failed, if that was a moment ago.
    fn failure(&self, digest: &Digest, now: Instant) -> Option<Arc<LoadError>> {
        let failed = self.failed.get(digest).filter(|failed| now < failed.until)?;
        Some(Arc::clone(&failed.error))
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

    /// Serves the head of the line for as long as there is room and a free loader; recalls for it when it has waited
    /// enough.
    fn move_up(&mut self, now: Instant, orders: &mut Orders<V, W>) {
        while let Some(head) = self.places.front() {
            // Recalling while every loader is busy would idle adapters for nothing.
            if self.loading.len() == self.bounds.loads.get() {
                return;
            }
            let since = head.waiters[0].since;
            let Some(victims) = self.victims(head, now) else {
                if now.saturating_duration_since(since) >= PATIENCE {
                    self.recall(now);
                }
                return;
            };
            let load = self.begin_load(&victims);
            orders.loads.push(load);
            self.end_recall(now, orders);
        }
    }

    /// Takes the head out of the line and reserves its memory, which there is once these are gone.
    fn begin_load(&mut self, victims: &[Digest]) -> Load<V> {
        let Place { digest, bytes, waiters } = self.places.pop_front().expect("there is a head");
        let evicted = victims.iter().map(|victim| self.take_out(*victim)).collect();
        self.counts.evictions += victims.len() as u64;
        let mut owners: Vec<_> = waiters.iter().map(|waiter| waiter.want.owner).collect();
        owners.sort_unstable();
        owners.dedup();
        let was_here = |owner: &Owner| self.accounts[owner].claims[&digest].uses.is_some();
        self.counts.reloads += u64::from(owners.iter().any(was_here));
        self.counts.loads += 1;
        self.loaded = self.loaded.saturating_add(bytes as u64);
        self.reserved_bytes += bytes;
        self.loading.insert(digest, Loading { bytes, owners, waiters });
        Load { digest, bytes, evicted }
    }

    fn end_load(&mut self, digest: Digest) -> Loading<W> {
        let loading = self.loading.remove(&digest).expect("each load that was ordered ends once");
        self.reserved_bytes -= loading.bytes;
        loading
    }

    /// Idle adapters whose memory the head's load needs; `None` where all of them do not suffice.
    fn victims(&self, head: &Place<W>, now: Instant) -> Option<Vec<Digest>> {
        let mut missing = head.bytes.saturating_sub(self.free_bytes());
        if missing > self.idle_bytes {
            return None;
        }
        let (mut victims, mut taken) = (Vec::new(), Taken::default());
        if missing == 0 {
            return Some(victims);
        }
        let mut idle: Vec<_> = self.in_order(head, now, |entry| entry.leases == 0).collect();
        // What the head has recalled is its own already.
        idle.sort_by_key(|candidate| !self.recalled.contains(&candidate.digest));
        for Candidate { digest, bytes, .. } in idle {
            if self.may_go(digest, head, &mut taken) {
                victims.push(digest);
                missing = missing.saturating_sub(bytes);
                if missing == 0 {
                    return Some(victims);
                }
            }
        }
        None
    }

    /// Sees to it that enough bytes for the head become free with the leases that exist now: idle adapters are kept
    /// idle, then leased ones fall idle, in the order in which they make room. Where loads hold the rest, what they bring
    /// is recalled once it is there.
    fn recall(&mut self, now: Instant) {
        let Some(head) = self.places.front() else { return };
        let mut taken = Taken::default();
        let mut missing = head.bytes.saturating_sub(self.free_bytes() + self.recalled_bytes);
        if missing == 0 {
            return;
        }
        let mut recalled = Vec::new();
        // Those that have been recalled are counted as gone before others are asked for.
        for digest in &self.recalled {
            self.may_go(*digest, head, &mut taken);
        }
        let idle = self.in_order(head, now, |entry| entry.leases == 0);
        let leased = self.in_order(head, now, |entry| entry.leases > 0);
        for Candidate { digest, bytes, .. } in idle.chain(leased) {
            if missing == 0 {
                break;
            }
            if !self.recalled.contains(&digest) && self.may_go(digest, head, &mut taken) {
                missing = missing.saturating_sub(bytes);
                recalled.push((digest, bytes));
            }
        }
        for (digest, bytes) in recalled {
            self.recalled.insert(digest);
            self.recalled_bytes += bytes;
        }
    }

    /// The head was served or left: recalled adapters that are still here serve whoever asked for them meanwhile.
    fn end_recall(&mut self, now: Instant, orders: &mut Orders<V, W>) {
        if self.recalled.is_empty() {
            return;
        }
        self.recalled.clear();
        self.recalled_bytes = 0;
        let (here, absent): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.places)
            .into_iter()
            .partition(|place| self.resident.contains_key(&place.digest));
        self.places = absent;
        for waiter in here.into_iter().flat_map(|place| place.waiters) {
            self.waiting -= 1;
            let value = self.lend(waiter.want, now).expect("resident, and nothing is recalled");
            orders.answers.push((waiter.reply, waiter.want, Ok(value)));
        }
    }

    /// Neither resident nor reserved.
    fn free_bytes(&self) -> usize {
        self.bounds.budget - self.resident_bytes - self.reserved_bytes
    }

    /// What is resident and meant, in the order in which it makes room for the head.
    fn in_order(
        &self,
        head: &Place<W>,
        now: Instant,
        meant: fn(&Resident<V>) -> bool,
    ) -> impl Iterator<Item = Candidate> + use<V, W> {
        let (mut candidates, mut newcomers) = (Vec::new(), 0);
        for (digest, entry) in &self.resident {
            let rank = self.rank(digest, entry, now);
            newcomers += if rank.is_newcomer() { entry.bytes } else { 0 };
            if meant(entry) {
                candidates.push(Candidate { digest: *digest, bytes: entry.bytes, rank });
            }
        }
        let is_known = |waiter: &Waiter<W>| {
            let uses = self.accounts[&waiter.want.owner].claims[&head.digest].uses;
            uses.is_some_and(|uses| !self.again(uses, now).rank(now).is_newcomer())
        };
        if !head.waiters.iter().any(is_known) {
            newcomers += head.bytes;
        }
        in_order(candidates, newcomers, self.bounds.budget)
    }

    /// An adapter is as hot as it is for any of its owners.
    fn rank(&self, digest: &Digest, entry: &Resident<V>, now: Instant) -> Rank {
        let ranks = entry.owners.iter().filter_map(|owner| {
            let uses = self.accounts[owner].claims[digest].uses;
            uses.map(|uses| uses.rank(now))
        });
        ranks.max().expect("what is resident was used by each of its owners")
    }
}

/// How long the failure answers for the next loads; `None` where whoever asks with the right size is served at once.
fn remembered(error: &LoadError) -> Option<Duration> {
    match error {
        LoadError::Memory { .. } => None,
        LoadError::Store(_) | LoadError::NoMemory { .. } | LoadError::BrokenOff => {
            Some(SETBACK_MEMORY)
        }
        LoadError::Gone
        | LoadError::Changed
        | LoadError::Damaged
        | LoadError::File(_)
        | LoadError::Adapter(_) => Some(FAILURE_MEMORY),
    }
}

/// Takes one waiter out, if it is among these.
fn remove<W>(waiters: &mut Vec<Waiter<W>>, number: u64) -> Option<Waiter<W>> {
    let at = waiters.iter().position(|waiter| waiter.number == number)?;
    Some(waiters.remove(at))
}

#[cfg(test)]
mod tests;
