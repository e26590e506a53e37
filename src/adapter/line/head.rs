//! How the head of the line gets its room: idle adapters make it, and leased ones are recalled.

use std::{collections::VecDeque, time::Instant};

use super::{
    Line, Load, Loading, Orders, Owner, PATIENCE, Place, Resident, Waiter,
    owners::Taken,
    uses::{Candidate, Rank, in_order},
};
use crate::lora::Digest;

impl<V, W> Line<V, W> {
    /// Serves the head of the line for as long as there is room and a free loader; recalls for it when it has waited
    /// enough.
    pub(super) fn move_up(&mut self, now: Instant, orders: &mut Orders<V, W>) {
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

    /// Idle adapters whose memory the head's load needs; `None` where all of them do not suffice.
    pub(super) fn victims(&self, head: &Place<W>, now: Instant) -> Option<Vec<Digest>> {
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
    pub(super) fn end_recall(&mut self, now: Instant, orders: &mut Orders<V, W>) {
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
    pub(super) fn free_bytes(&self) -> usize {
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
    pub(super) fn rank(&self, digest: &Digest, entry: &Resident<V>, now: Instant) -> Rank {
        let ranks = entry.owners.iter().filter_map(|owner| {
            let uses = self.accounts[owner].claims[digest].uses;
            uses.map(|uses| uses.rank(now))
        });
        ranks.max().expect("what is resident was used by each of its owners")
    }
}
