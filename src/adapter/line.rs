//! Who gets an adapter, who waits, and what makes room: the policy of the host cache.
//!
//! Pure: no thread, no lock, no clock (the time is passed in), no file. Each event is one method; what has to happen
//! outside comes back as [`Orders`].
//!
//! - Memory is reserved before a load begins. Resident and reserved bytes together never exceed the budget.
//! - An adapter with a lease is never evicted.
//! - Whoever cannot be served at once stands in one line, first come, first served; requests for one adapter share its
//!   place, and one load serves them all. Nobody overtakes the head, so a large adapter is not starved by small ones.
//! - Idle adapters make room at once, the least recently lent first. When they do not suffice for [`PATIENCE`], the
//!   head *recalls* leased ones: a recalled adapter takes no new lease, its askers join the line, and with its last
//!   lease it can go. So the head waits for leases that exist, never for leases yet to come, and hot adapters cannot
//!   starve a cold one.
//! - A recall ends when the head is served or leaves. What was recalled and is still here serves its askers again.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use lru::LruCache;

use super::{LoadError, NotLent};
use crate::lora::Digest;

/// How long the head of the line waits for adapters to fall idle before it recalls leased ones: long enough for
/// traffic with gaps to leave one, short beside the answer that a lease is for.
pub(super) const PATIENCE: Duration = Duration::from_millis(100);

/// How long a failed load answers for the next ones: a storm of requests reads a broken file once a second, not once
/// each.
pub(super) const FAILURE_MEMORY: Duration = Duration::from_secs(1);

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
    /// In memory, the most recently lent first.
    resident: LruCache<Digest, Resident<V>>,
    /// Being loaded, their bytes reserved.
    loading: HashMap<Digest, Loading<W>>,
    /// Waiting for room (or, while they are recalled, for their turn), the oldest first.
    places: VecDeque<Place<W>>,
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
    /// Waiters of `loading` and `places`.
    waiting: usize,
    /// The next ticket's number.
    next: u64,
    counts: Counts,
}

#[derive(Debug)]
struct Resident<V> {
    value: Arc<V>,
    bytes: usize,
    leases: usize,
}

#[derive(Debug)]
struct Loading<W> {
    bytes: usize,
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
    digest: Digest,
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

/// What the outside has to do after an event, in this order.
#[derive(Debug)]
#[must_use]
pub(super) struct Orders<V, W> {
    /// Waiters that have their answer, and whose digest they asked for; with `Ok` one lease each is counted.
    pub(super) answers: Vec<(W, Digest, Answer<V>)>,
    /// Adapters that nothing names any more: to be dropped outside of the lock.
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
            resident: LruCache::unbounded(),
            loading: HashMap::new(),
            places: VecDeque::new(),
            failed: HashMap::new(),
            forgotten: HashSet::new(),
            resident_bytes: 0,
            idle_bytes: 0,
            recalled: HashSet::new(),
            recalled_bytes: 0,
            reserved_bytes: 0,
            waiting: 0,
            next: 0,
            counts: Counts::default(),
        }
    }

    /// A request wants the adapter of this digest, which takes `bytes` of memory once it is loaded.
    pub(super) fn ask(
        &mut self,
        digest: Digest,
        bytes: usize,
        reply: W,
        now: Instant,
    ) -> Result<(Asked<V>, Orders<V, W>), NotLent> {
        if let Some(value) = self.lend(digest) {
            self.counts.hits += 1;
            return Ok((Asked::Lent(value), Orders::none()));
        }
        if let Some(failed) = self.failed.get(&digest).filter(|failed| now < failed.until) {
            return Err(NotLent::Failed(Arc::clone(&failed.error)));
        }
        if bytes > self.bounds.budget {
            return Err(NotLent::TooLarge { bytes, budget: self.bounds.budget });
        }
        if self.waiting >= self.bounds.waiting {
            return Err(NotLent::Crowded { waiting: self.waiting });
        }
        self.counts.misses += 1;
        let ticket = self.join(digest, bytes, reply, now);
        Ok((Asked::Waits(ticket), self.advance(now)))
    }

    /// A waiter went away. True where it was still waiting; otherwise its answer has been given.
    pub(super) fn leave(&mut self, ticket: Ticket, now: Instant) -> (bool, Orders<V, W>) {
        if let Some(loading) = self.loading.get_mut(&ticket.digest) {
            // The load goes on: its work is half done and the next request may want it.
            let left = remove(&mut loading.waiters, ticket.number);
            self.waiting -= usize::from(left);
            return (left, Orders::none());
        }
        let Some(at) = self.places.iter().position(|place| place.digest == ticket.digest) else {
            return (false, Orders::none());
        };
        let left = remove(&mut self.places[at].waiters, ticket.number);
        self.waiting -= usize::from(left);
        if !self.places[at].waiters.is_empty() {
            return (left, Orders::none());
        }
        self.places.remove(at);
        let mut orders = Orders::none();
        if at == 0 {
            self.end_recall(&mut orders);
        }
        self.move_up(now, &mut orders);
        (left, orders)
    }

    /// A lease of a resident adapter ended.
    pub(super) fn returned(&mut self, digest: Digest, now: Instant) -> Orders<V, W> {
        let entry = self.resident.peek_mut(&digest).expect("what is leased is never evicted");
        entry.leases -= 1;
        if entry.leases == 0 {
            self.idle_bytes += entry.bytes;
        }
        let mut orders = Orders::none();
        orders.dropped.extend(self.drop_forgotten(digest));
        self.move_up(now, &mut orders);
        orders
    }

    /// An adapter will not be asked for again: its memory is given back as soon as it has no lease.
    pub(super) fn forget(&mut self, digest: Digest, now: Instant) -> Orders<V, W> {
        self.failed.remove(&digest);
        if self.resident.contains(&digest) || self.loading.contains_key(&digest) {
            self.forgotten.insert(digest);
        }
        let mut orders = Orders::none();
        orders.dropped.extend(self.drop_forgotten(digest));
        self.move_up(now, &mut orders);
        orders
    }

    /// Takes out what is to go, if it is here and idle.
    fn drop_forgotten(&mut self, digest: Digest) -> Option<Arc<V>> {
        let idle = self.resident.peek(&digest).is_some_and(|entry| entry.leases == 0);
        if !idle || !self.forgotten.remove(&digest) {
            return None;
        }
        let entry = self.resident.pop(&digest)?;
        self.resident_bytes -= entry.bytes;
        self.idle_bytes -= entry.bytes;
        if self.recalled.remove(&digest) {
            self.recalled_bytes -= entry.bytes;
        }
        Some(entry.value)
    }

    /// A load that was ordered is done.
    pub(super) fn loaded(&mut self, digest: Digest, value: V, now: Instant) -> Orders<V, W> {
        let mut orders = Orders::none();
        let Loading { bytes, waiters } = self.end_load(digest);
        let value = Arc::new(value);
        let leases = waiters.len();
        self.waiting -= leases;
        self.resident_bytes += bytes;
        if leases == 0 {
            self.idle_bytes += bytes;
        }
        let answer = |w: Waiter<W>| (w.reply, digest, Ok(Arc::clone(&value)));
        orders.answers.extend(waiters.into_iter().map(answer));
        self.resident.push(digest, Resident { value, bytes, leases });
        orders.dropped.extend(self.drop_forgotten(digest));
        self.move_up(now, &mut orders);
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
        let Loading { waiters, .. } = self.end_load(digest);
        self.forgotten.remove(&digest);
        self.counts.failures += 1;
        self.waiting -= waiters.len();
        let answer = |w: Waiter<W>| (w.reply, digest, Err(Arc::clone(&error)));
        orders.answers.extend(waiters.into_iter().map(answer));
        self.failed.retain(|_, failed| now < failed.until);
        // Whoever asks with the right size is to be served at once.
        if !matches!(*error, LoadError::Memory { .. }) {
            self.failed.insert(digest, Failed { error, until: now + FAILURE_MEMORY });
        }
        self.move_up(now, &mut orders);
        orders
    }

    /// Time passed. To be called once a request has waited for [`PATIENCE`].
    pub(super) fn advance(&mut self, now: Instant) -> Orders<V, W> {
        let mut orders = Orders::none();
        self.move_up(now, &mut orders);
        orders
    }

    /// Whether an adapter is in memory, and how many leases it has.
    pub(super) fn leases(&self, digest: &Digest) -> Option<usize> {
        self.resident.peek(digest).map(|entry| entry.leases)
    }

    /// Numbers for the operator.
    pub(super) fn standing(&self) -> Standing {
        Standing {
            resident: self.resident.len(),
            resident_bytes: self.resident_bytes,
            leased: self.resident.iter().filter(|(_, entry)| entry.leases > 0).count(),
            loading: self.loading.len(),
            loading_bytes: self.reserved_bytes,
            waiting: self.waiting,
            counts: self.counts,
        }
    }

    /// Counts one lease of an adapter that is here and not recalled.
    fn lend(&mut self, digest: Digest) -> Option<Arc<V>> {
        if self.recalled.contains(&digest) {
            return None;
        }
        let entry = self.resident.get_mut(&digest)?;
        if entry.leases == 0 {
            self.idle_bytes -= entry.bytes;
        }
        entry.leases += 1;
        Some(Arc::clone(&entry.value))
    }

    /// Adds a waiter to its adapter's load or place, or at the end of the line.
    fn join(&mut self, digest: Digest, bytes: usize, reply: W, since: Instant) -> Ticket {
        let ticket = Ticket { digest, number: self.next };
        let waiter = Waiter { number: self.next, since, reply };
        self.next += 1;
        self.waiting += 1;
        if let Some(loading) = self.loading.get_mut(&digest) {
            loading.waiters.push(waiter);
        } else if let Some(place) = self.places.iter_mut().find(|place| place.digest == digest) {
            place.waiters.push(waiter);
        } else {
            self.places.push_back(Place { digest, bytes, waiters: vec![waiter] });
        }
        ticket
    }

    /// Serves the head of the line for as long as there is room and a free loader; recalls for it when it has waited
    /// enough.
    fn move_up(&mut self, now: Instant, orders: &mut Orders<V, W>) {
        while let Some(head) = self.places.front() {
            // Recalling while every loader is busy would idle adapters for nothing.
            if self.loading.len() == self.bounds.loads.get() {
                return;
            }
            let (need, since) = (head.bytes, head.waiters[0].since);
            if self.free_bytes() + self.idle_bytes < need {
                if now.saturating_duration_since(since) >= PATIENCE {
                    self.recall(need);
                }
                return;
            }
            let load = self.begin_load();
            orders.loads.push(load);
            self.end_recall(orders);
        }
    }

    /// Takes the head out of the line and reserves its memory, which there is if idle adapters go.
    fn begin_load(&mut self) -> Load<V> {
        let Place { digest, bytes, waiters } = self.places.pop_front().expect("there is a head");
        let evicted = self.evict_for(bytes);
        self.reserved_bytes += bytes;
        self.counts.loads += 1;
        self.loading.insert(digest, Loading { bytes, waiters });
        Load { digest, bytes, evicted }
    }

    fn end_load(&mut self, digest: Digest) -> Loading<W> {
        let loading = self.loading.remove(&digest).expect("each load that was ordered ends once");
        self.reserved_bytes -= loading.bytes;
        loading
    }

    /// Drops idle adapters, the least recently lent first, until `bytes` are free.
    fn evict_for(&mut self, bytes: usize) -> Vec<Arc<V>> {
        let mut evicted = Vec::new();
        while self.free_bytes() < bytes {
            let idle = self.resident.iter().rev().find(|(_, entry)| entry.leases == 0);
            let victim = *idle.expect("idle bytes belong to idle adapters").0;
            let entry = self.resident.pop(&victim).expect("the victim was just found");
            self.forgotten.remove(&victim);
            self.resident_bytes -= entry.bytes;
            self.idle_bytes -= entry.bytes;
            self.counts.evictions += 1;
            evicted.push(entry.value);
        }
        evicted
    }

    /// Sees to it that `bytes` become free with the leases that exist now: idle adapters are kept idle, then leased
    /// ones fall idle, the least recently lent first. Where loads hold the rest, what they bring is recalled once it
    /// is there.
    fn recall(&mut self, bytes: usize) {
        let free = self.free_bytes();
        let (idle, leased): (Vec<_>, Vec<_>) =
            self.resident.iter().rev().partition(|(_, entry)| entry.leases == 0);
        for (digest, entry) in idle.into_iter().chain(leased) {
            if free + self.recalled_bytes >= bytes {
                break;
            }
            if self.recalled.insert(*digest) {
                self.recalled_bytes += entry.bytes;
            }
        }
    }

    /// The head was served or left: recalled adapters that are still here serve whoever asked for them meanwhile.
    fn end_recall(&mut self, orders: &mut Orders<V, W>) {
        if self.recalled.is_empty() {
            return;
        }
        self.recalled.clear();
        self.recalled_bytes = 0;
        let (here, absent): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.places)
            .into_iter()
            .partition(|place| self.resident.contains(&place.digest));
        self.places = absent;
        for place in here {
            self.waiting -= place.waiters.len();
            for waiter in place.waiters {
                let value = self.lend(place.digest).expect("resident, and nothing is recalled");
                orders.answers.push((waiter.reply, place.digest, Ok(value)));
            }
        }
    }

    /// Neither resident nor reserved.
    fn free_bytes(&self) -> usize {
        self.bounds.budget - self.resident_bytes - self.reserved_bytes
    }
}

/// Takes one waiter out, if it is among these.
fn remove<W>(waiters: &mut Vec<Waiter<W>>, number: u64) -> bool {
    let at = waiters.iter().position(|waiter| waiter.number == number);
    at.map(|at| waiters.remove(at)).is_some()
}

#[cfg(test)]
mod tests;
