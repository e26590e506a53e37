//! For whom adapters are in memory, and how much of it each of them keeps and may take.
//!
//! An owner *claims* an adapter with its first request for it, until its memory is needed. A claim is charged in full,
//! also where others have claims on the same content: what an owner may have depends on its own requests alone, and
//! tells it nothing of anybody else's.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use super::{
    Line, Orders, PATIENCE, Place, Resident, Waiter, Want,
    uses::{Candidate, Moment, Uses, in_order},
};
use crate::lora::Digest;

/// Who asks. Opaque: the line compares it, and no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::adapter) struct Owner(pub(in crate::adapter) u32);

/// An owner's part of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::adapter) struct Portion {
    /// What others' loads leave to it.
    pub(in crate::adapter) least: usize,
    /// What its adapters may take together.
    pub(in crate::adapter) most: usize,
}

impl Default for Portion {
    fn default() -> Self {
        Self { least: 0, most: usize::MAX }
    }
}

/// The portions of all owners that have one.
#[derive(Clone, Debug, Default)]
pub(in crate::adapter) struct Portions {
    each: HashMap<Owner, Portion>,
    /// Sum of all `least`.
    kept: usize,
}

impl Portions {
    /// The part of the memory that is kept for owners at most. Pins may have half, and so a quarter is everybody's.
    pub(in crate::adapter) const KEPT: usize = 4;

    /// Of a memory of so many bytes. Where more than its part would be kept for owners, all get as much less. Returns
    /// what was asked for then.
    pub(in crate::adapter) fn of(
        memory: usize,
        each: impl IntoIterator<Item = (Owner, Portion)>,
    ) -> (Self, Option<u128>) {
        let each = each.into_iter().filter(|(_, portion)| *portion != Portion::default());
        let mut each: HashMap<_, _> = each.collect();
        let most = (memory / Self::KEPT) as u128;
        let asked: u128 = each.values().map(|portion| portion.least as u128).sum();
        if asked > most {
            for portion in each.values_mut() {
                let scaled = portion.least as u128 * most / asked;
                portion.least = usize::try_from(scaled).expect("no more than it was");
            }
        }
        let kept = each.values().map(|portion| portion.least).sum();
        (Self { each, kept }, (asked > most).then_some(asked))
    }

    pub(super) fn portion(&self, owner: Owner) -> Portion {
        self.each.get(&owner).copied().unwrap_or_default()
    }

    /// What is kept for all but this one.
    pub(super) fn kept_from(&self, owner: Owner) -> usize {
        self.kept - self.portion(owner).least
    }

    /// Whether something is kept for somebody.
    pub(super) fn keep_anything(&self) -> bool {
        self.kept > 0
    }
}

/// What one owner has.
#[derive(Debug)]
pub(super) struct Account<W> {
    pub(super) claims: HashMap<Digest, Claim>,
    /// Sum over `claims`.
    pub(super) charged: usize,
    /// Sum over those that are in memory.
    pub(super) resident: usize,
    /// Requests that its portion has no room for, the oldest first.
    pub(super) held: VecDeque<Waiter<W>>,
}

/// An owner's claim on an adapter that is in memory, being loaded, or waited for in the line.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) bytes: usize,
    /// The owner's leases of it, and its requests that are in the line or wait for its load.
    pub(super) busy: usize,
    /// `None` until it was lent.
    pub(super) uses: Option<Uses>,
}

impl<W> Account<W> {
    pub(super) fn new() -> Self {
        Self { claims: HashMap::new(), charged: 0, resident: 0, held: VecDeque::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.claims.is_empty() && self.held.is_empty()
    }
}

/// What would be left to owners if adapters went, while it is decided which go.
#[derive(Debug, Default)]
pub(super) struct Taken(HashMap<Owner, usize>);

impl Taken {
    /// So many bytes of an owner's would go.
    pub(super) fn add(&mut self, owner: Owner, bytes: usize) {
        *self.0.entry(owner).or_default() += bytes;
    }

    pub(super) fn from(&self, owner: Owner) -> usize {
        self.0.get(&owner).copied().unwrap_or_default()
    }
}

impl<V, W> Line<V, W> {
    pub(super) fn claim_of(&mut self, want: Want) -> &mut Claim {
        let account = self.accounts.get_mut(&want.owner);
        account.and_then(|account| account.claims.get_mut(&want.digest)).expect("it was claimed")
    }

    /// Whether a request has to wait for others of its owner that are held: all that is new to the owner, and when the
    /// first of these is late, what the owner has, too, so that its leases come to an end.
    pub(super) fn is_held(&self, want: Want, now: Instant) -> bool {
        let Some(account) = self.accounts.get(&want.owner) else { return false };
        account.held.front().is_some_and(|first| {
            let is_late = now.saturating_duration_since(first.since) >= PATIENCE;
            is_late || !self.has_claim(want)
        })
    }

    /// Whether its owner has a claim on it already.
    pub(super) fn has_claim(&self, want: Want) -> bool {
        let account = self.accounts.get(&want.owner);
        account.is_some_and(|account| account.claims.contains_key(&want.digest))
    }

    /// Puts a waiter behind all others of its owner that are held.
    pub(super) fn hold(&mut self, waiter: Waiter<W>) {
        let owner = waiter.want.owner;
        self.accounts.entry(owner).or_insert_with(Account::new).held.push_back(waiter);
        self.held_up.insert(owner);
    }

    /// Lets those of an owner's requests go on that are held and that its portion has room for by now.
    pub(super) fn admit(&mut self, owner: Owner, now: Instant, orders: &mut Orders<V, W>) {
        while let Some(first) = self.accounts.get(&owner).and_then(|account| account.held.front()) {
            let want = first.want;
            let failure = self.failure(&want.digest, now);
            if failure.is_none() && !self.claim(want, now, orders) {
                return;
            }
            let account = self.accounts.get_mut(&owner).expect("it has a waiter");
            let waiter = account.held.pop_front().expect("it was just seen");
            if let Some(error) = failure {
                self.waiting -= 1;
                orders.answers.push((waiter.reply, want, Err(error)));
                continue;
            }
            self.claim_of(want).busy += 1;
            if let Some(value) = self.lend(want, now) {
                self.waiting -= 1;
                orders.answers.push((waiter.reply, want, Ok(value)));
            } else {
                self.join(waiter);
            }
        }
        self.close_if_empty(owner);
    }

    /// Claims an adapter for its owner, if there is room in the owner's portion or its idle adapters make some. True where it
    /// was claimed before.
    pub(super) fn claim(&mut self, want: Want, now: Instant, orders: &mut Orders<V, W>) -> bool {
        let Want { owner, digest, bytes } = want;
        if self.has_claim(want) {
            return true;
        }
        let account = self.accounts.entry(owner).or_insert_with(Account::new);
        let most = self.portions.portion(owner).most;
        let beyond = account.charged.saturating_add(bytes).saturating_sub(most);
        let Some(own) = self.own_idle(owner, beyond, now) else { return false };
        for digest in own {
            orders.dropped.extend(self.cede(owner, digest));
        }
        let uses = self.past.pop(&(owner, digest));
        let account = self.accounts.entry(owner).or_insert_with(Account::new);
        account.charged += bytes;
        account.claims.insert(digest, Claim { bytes, busy: 0, uses });
        if let Some(entry) = self.resident.get_mut(&digest) {
            account.resident += bytes;
            entry.owners.push(owner);
            self.touch(owner, digest, now);
        } else if let Some(loading) = self.loading.get_mut(&digest) {
            loading.owners.push(owner);
        }
        true
    }

    /// Which of an owner's idle adapters go so that so many bytes of its portion are free; `None` where they do not
    /// suffice.
    fn own_idle(&self, owner: Owner, mut missing: usize, now: Instant) -> Option<Vec<Digest>> {
        let mut victims = Vec::new();
        if missing == 0 {
            return Some(victims);
        }
        let account = self.accounts.get(&owner)?;
        let (mut candidates, mut newcomers) = (Vec::new(), 0);
        for (digest, claim) in &account.claims {
            let Some(rank) = claim.uses.map(|uses| uses.rank(now)) else { continue };
            newcomers += if rank.is_newcomer() { claim.bytes } else { 0 };
            if claim.busy == 0 && self.resident.contains_key(digest) {
                candidates.push(Candidate { digest: *digest, bytes: claim.bytes, rank });
            }
        }
        for candidate in in_order(candidates, newcomers, self.portions.portion(owner).most) {
            victims.push(candidate.digest);
            missing = missing.saturating_sub(candidate.bytes);
            if missing == 0 {
                return Some(victims);
            }
        }
        None
    }

    /// Ends an owner's claim on an adapter that it does not use now. Where nobody else has one, the adapter goes.
    fn cede(&mut self, owner: Owner, digest: Digest) -> Option<Arc<V>> {
        let entry = self.resident.get_mut(&digest).expect("it is idle, not absent");
        if entry.owners == [owner] {
            self.counts.evictions += 1;
            return Some(self.take_out(digest));
        }
        entry.owners.retain(|other| *other != owner);
        let account = self.accounts.get_mut(&owner).expect("it has a claim");
        account.resident -= account.claims[&digest].bytes;
        self.give_up(owner, digest);
        None
    }

    /// Takes an idle adapter out of memory. Of its owners, those who wait for it keep their claims.
    pub(super) fn take_out(&mut self, digest: Digest) -> Arc<V> {
        let Resident { value, bytes, owners, .. } =
            self.resident.remove(&digest).expect("it is in memory");
        self.forgotten.remove(&digest);
        self.resident_bytes -= bytes;
        self.idle_bytes -= bytes;
        if self.recalled.remove(&digest) {
            self.recalled_bytes -= bytes;
        }
        for owner in owners {
            let account = self.accounts.get_mut(&owner).expect("it has a claim");
            let Claim { bytes, busy, .. } = account.claims[&digest];
            account.resident -= bytes;
            if busy == 0 {
                self.give_up(owner, digest);
            }
        }
        value
    }

    /// Ends a claim on what is not in memory for its owner any more.
    pub(super) fn give_up(&mut self, owner: Owner, digest: Digest) {
        let account = self.accounts.get_mut(&owner).expect("it has a claim");
        let claim = account.claims.remove(&digest).expect("it was claimed");
        account.charged -= claim.bytes;
        if let Some(uses) = claim.uses {
            self.past.put((owner, digest), uses);
        }
        self.close_if_empty(owner);
    }

    pub(super) fn close_if_empty(&mut self, owner: Owner) {
        let Some(account) = self.accounts.get(&owner) else { return };
        if account.held.is_empty() {
            self.held_up.remove(&owner);
        }
        if account.is_empty() {
            self.accounts.remove(&owner);
        }
    }

    /// Whether an adapter may make room for the head, besides what is `taken` already. Then it is counted as such.
    pub(super) fn may_go(&self, digest: Digest, head: &Place<W>, taken: &mut Taken) -> bool {
        if !self.portions.keep_anything() {
            return true;
        }
        let owners = self.resident[&digest].owners.iter();
        let claims = owners.map(|owner| {
            let account = &self.accounts[owner];
            (*owner, account.resident, account.claims[&digest].bytes)
        });
        let asks = |owner| head.waiters.iter().any(|waiter| waiter.want.owner == owner);
        let is_kept = |(owner, resident, bytes): (Owner, usize, usize)| {
            let left = resident.saturating_sub(taken.from(owner) + bytes);
            !asks(owner) && left < self.portions.portion(owner).least
        };
        if !self.recalled.contains(&digest) && claims.clone().any(is_kept) {
            return false;
        }
        for (owner, _, bytes) in claims {
            taken.add(owner, bytes);
        }
        true
    }

    /// An owner uses what it has claimed.
    pub(super) fn touch(&mut self, owner: Owner, digest: Digest, now: Instant) {
        self.turn += 1;
        let account = self.accounts.get(&owner);
        let uses = account.and_then(|account| account.claims.get(&digest)?.uses);
        let uses = uses.map_or_else(|| Uses::first(self.at(now)), |uses| self.again(uses, now));
        self.claim_of(Want { owner, digest, bytes: 0 }).uses = Some(uses);
    }

    pub(super) fn again(&self, uses: Uses, now: Instant) -> Uses {
        uses.again(self.at(now), self.bounds.budget)
    }

    fn at(&self, now: Instant) -> Moment {
        Moment { now, turn: self.turn, loaded: self.loaded }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_kept_than_a_quarter_and_all_get_as_much_less() {
        let least = |least| Portion { least, ..Portion::default() };
        let each = [(Owner(1), least(10)), (Owner(2), least(30))];
        let (portions, asked) = Portions::of(160, each);
        assert_eq!((portions.portion(Owner(2)).least, asked), (30, None));
        assert_eq!((portions.kept_from(Owner(1)), portions.kept_from(Owner(3))), (30, 40));
        let (portions, asked) = Portions::of(80, each);
        assert_eq!((portions.portion(Owner(1)).least, portions.portion(Owner(2)).least), (5, 15));
        assert_eq!(asked, Some(40));
        assert_eq!(portions.portion(Owner(3)), Portion::default());
        let (portions, _) = Portions::of(80, (0..9).map(|owner| (Owner(owner), least(usize::MAX))));
        assert!(portions.kept <= 20, "{portions:?}");
    }
}
