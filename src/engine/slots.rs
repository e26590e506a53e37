//! How many different adapters may run at once, and which do.

use std::collections::{BTreeMap, BTreeSet};

use crate::lora::Digest;

/// Places for distinct adapters among the running sequences.
///
/// - Never more adapters are bound than there are slots.
/// - A slot is free again when the last running sequence of its adapter is gone.
/// - Where adapters have to be brought to a device, none is bound that is not there.
#[derive(Debug)]
pub(crate) struct Slots {
    /// How many adapters may be bound.
    capacity: usize,
    bound: BTreeMap<Digest, Slot>,
    /// Of those that are not bound, which could be; `None` is all.
    there: Option<BTreeSet<Digest>>,
}

#[derive(Debug)]
struct Slot {
    /// Running sequences of this adapter; never 0.
    sequences: usize,
    /// New sequences of this adapter wait, so that the slot becomes free for somebody else.
    draining: bool,
}

impl Slots {
    /// `capacity` free slots.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, bound: BTreeMap::new(), there: None }
    }

    /// Whether a new sequence of this adapter may run now; the base needs no slot.
    pub(crate) fn admits(&self, adapter: Option<Digest>) -> bool {
        adapter.is_none_or(|digest| match self.bound.get(&digest) {
            Some(slot) => !slot.draining,
            None => self.bound.len() < self.capacity && self.is_there(digest),
        })
    }

    /// Which adapters are where steps run through them, beside those that are bound; `None` is all.
    pub(crate) fn set_there(&mut self, there: Option<BTreeSet<Digest>>) {
        self.there = there;
    }

    fn is_there(&self, adapter: Digest) -> bool {
        self.there.as_ref().is_none_or(|there| there.contains(&adapter))
    }

    /// A sequence of this adapter starts to run.
    pub(crate) fn bind(&mut self, adapter: Option<Digest>) {
        if let Some(digest) = adapter {
            let slot = self.bound.entry(digest).or_insert(Slot { sequences: 0, draining: false });
            slot.sequences += 1;
            debug_assert!(self.bound.len() <= self.capacity, "bound without asking");
        }
    }

    /// A sequence of this adapter no longer runs.
    pub(crate) fn release(&mut self, adapter: Option<Digest>) {
        if let Some(digest) = adapter
            && let Some(slot) = self.bound.get_mut(&digest)
        {
            slot.sequences -= 1;
            if slot.sequences == 0 {
                self.bound.remove(&digest);
            }
        }
    }

    /// Lets `wanted` slots run empty: those chosen before, then those with the fewest sequences.
    pub(crate) fn drain(&mut self, wanted: usize) {
        if wanted == 0 {
            self.bound.values_mut().for_each(|slot| slot.draining = false);
            return;
        }
        let draining = self.bound.values().filter(|slot| slot.draining).count();
        for _ in draining..wanted {
            let Some(slot) = self
                .bound
                .values_mut()
                .filter(|slot| !slot.draining)
                .min_by_key(|slot| slot.sequences)
            else {
                return;
            };
            slot.draining = true;
        }
    }

    /// Adapters that run.
    pub(crate) fn bound(&self) -> usize {
        self.bound.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(id: u8) -> Digest {
        Digest::of(&[id], &[])
    }

    #[test]
    fn a_slot_is_held_until_the_last_sequence_ends() {
        let mut slots = Slots::new(1);
        slots.bind(Some(digest(1)));
        slots.bind(Some(digest(1)));
        slots.release(Some(digest(1)));
        assert!(
            slots.admits(Some(digest(1))) && slots.admits(None) && !slots.admits(Some(digest(2)))
        );
        slots.release(Some(digest(1)));
        assert!(slots.admits(Some(digest(2))));
        assert_eq!(slots.bound(), 0);
    }

    #[test]
    fn who_is_not_there_yet_is_not_bound() {
        let mut slots = Slots::new(2);
        slots.set_there(Some(BTreeSet::from([digest(1)])));
        assert!(slots.admits(None) && slots.admits(Some(digest(1))));
        assert!(!slots.admits(Some(digest(2))));
        slots.bind(Some(digest(1)));
        slots.set_there(Some(BTreeSet::new()));
        assert!(slots.admits(Some(digest(1))), "it runs, so it is there");
    }

    #[test]
    fn the_least_used_slot_drains_and_stays_the_one() {
        let mut slots = Slots::new(2);
        for id in [1, 1, 2] {
            slots.bind(Some(digest(id)));
        }
        slots.drain(1);
        assert!(slots.admits(Some(digest(1))) && !slots.admits(Some(digest(2))));
        slots.release(Some(digest(1)));
        slots.bind(Some(digest(2)));
        slots.drain(1);
        assert!(slots.admits(Some(digest(1))) && !slots.admits(Some(digest(2))));
        slots.drain(9);
        assert!(!slots.admits(Some(digest(1))) && slots.admits(None));
        slots.drain(0);
        assert!(slots.admits(Some(digest(2))));
    }
}
