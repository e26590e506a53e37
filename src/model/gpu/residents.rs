//! Which adapters are on the device, and where. Pure: no device, no thread, no clock.
//!
//! The memory for adapters is one region that is handed out in pieces as large as each adapter is, whatever its rank. What must
//! hold, and is tested below:
//!
//! - Pieces do not overlap, and free memory is what no piece has.
//! - Whoever is kept, or is on the way, stays. Of the others those go that were used longest ago, of all that lie side by side and
//!   make room enough; and nobody goes for one that would not fit even then.
//! - The parts of a mix have room together or not at all.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use lru::LruCache;

use crate::lora::Digest;

/// Adapters on the device.
#[derive(Debug)]
pub(super) struct Residents {
    free: Free,
    /// Places in the tables that kernels look adapters up in.
    slots: Vec<usize>,
    /// Whoever was used last is first.
    by_use: LruCache<Digest, Resident>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Resident {
    place: Place,
    /// Its numbers are there.
    arrived: bool,
}

/// Bytes that one has; and what it costs that it goes, where it may, and who it is.
type Taken = (Range<usize>, Option<(usize, Digest)>);

/// What an adapter has of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Its place in the tables.
    pub(super) slot: usize,
    /// Its bytes of the region.
    pub(super) bytes: Range<usize>,
}

/// What becomes of a wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// It is there.
    There,
    /// It is on its way.
    Coming,
    /// It has a place, to which its numbers are to be brought.
    Bring(Place),
}

impl Residents {
    /// Nobody in a region of so many bytes, with so many places in the tables.
    pub(super) fn new(bytes: usize, slots: usize) -> Self {
        let slots = (0..slots).rev().collect();
        Self { free: Free::new(bytes), slots, by_use: LruCache::unbounded() }
    }

    /// Sees to it that adapters of so many bytes, which run together, are there, or come. None of `kept` goes for them. What
    /// becomes of each; where there is no room for all of them, of none, and everybody stays where they are.
    pub(super) fn want(
        &mut self,
        parts: &[(Digest, usize)],
        kept: &BTreeSet<Digest>,
    ) -> Option<Vec<Wish>> {
        let missing: Vec<_> =
            parts.iter().filter(|(digest, _)| !self.by_use.contains(digest)).collect();
        let own: BTreeSet<_> = parts.iter().map(|(digest, _)| *digest).collect();
        let bytes = missing.iter().map(|(_, bytes)| bytes).sum();
        let stays: BTreeSet<_> = kept.union(&own).copied().collect();
        if let Some(leaving) = self.leaving(missing.len(), bytes, &stays) {
            for digest in leaving {
                self.forget(digest);
            }
        } else {
            // Those of them that are there may lie where the others find no room beside them. They all come anew then.
            let all = parts.iter().map(|(_, bytes)| bytes).sum();
            let leaving = self.leaving(parts.len(), all, kept)?;
            let is_free = |digest: &Digest| {
                self.by_use.peek(digest).is_none_or(|own| own.arrived && !kept.contains(digest))
            };
            if !own.iter().all(is_free) {
                return None;
            }
            leaving.into_iter().chain(own).for_each(|digest| self.forget(digest));
        }
        let mut wish = |(digest, bytes): &(Digest, usize)| {
            self.find(*digest).or_else(|| {
                let place = self.place(*bytes)?;
                self.by_use.put(*digest, Resident { place: place.clone(), arrived: false });
                Some(Wish::Bring(place))
            })
        };
        let wishes: Option<Vec<_>> = parts.iter().map(&mut wish).collect();
        debug_assert!(wishes.is_some(), "room was made for all of them");
        wishes
    }

    /// Whether an adapter is there, or comes; it was used.
    pub(super) fn find(&mut self, digest: Digest) -> Option<Wish> {
        let resident = self.by_use.get(&digest)?;
        Some(if resident.arrived { Wish::There } else { Wish::Coming })
    }

    /// Whether an adapter has a place.
    pub(super) fn has(&self, digest: Digest) -> bool {
        self.by_use.contains(&digest)
    }

    /// The adapter's place in the tables, where its numbers are there. It was used.
    pub(super) fn slot(&mut self, digest: Digest) -> Option<usize> {
        let resident = self.by_use.get(&digest)?;
        resident.arrived.then_some(resident.place.slot)
    }

    /// The adapter's numbers have arrived.
    pub(super) fn arrive(&mut self, digest: Digest) {
        if let Some(resident) = self.by_use.peek_mut(&digest) {
            resident.arrived = true;
        }
    }

    /// The adapter is no longer there, or does not come.
    pub(super) fn forget(&mut self, digest: Digest) {
        if let Some(Resident { place: Place { slot, bytes }, .. }) = self.by_use.pop(&digest) {
            self.free.give_back(bytes);
            self.slots.push(slot);
        }
    }

    /// Those that have arrived.
    pub(super) fn arrived(&self) -> BTreeSet<Digest> {
        let arrived = self.by_use.iter().filter(|(_, resident)| resident.arrived);
        arrived.map(|(digest, _)| *digest).collect()
    }

    /// Whether some are on their way.
    pub(super) fn are_coming(&self) -> bool {
        self.by_use.iter().any(|(_, resident)| !resident.arrived)
    }

    /// Who goes so that so many bytes lie free side by side, and so many places in the tables: of all ways, one in which whoever was
    /// used last of them was used longest ago. `None` where there is no way.
    fn leaving(&self, slots: usize, bytes: usize, kept: &BTreeSet<Digest>) -> Option<Vec<Digest>> {
        let stays = |digest: &Digest, one: &Resident| !one.arrived || kept.contains(digest);
        // From the least recently used on: that is how much it costs that one goes.
        let ranked = self.by_use.iter().rev().enumerate();
        let mut taken: Vec<_> = ranked
            .map(|(cost, (digest, one))| {
                let leaves = (!stays(digest, one)).then_some((cost, *digest));
                (one.place.bytes.clone(), leaves)
            })
            .collect();
        taken.sort_by_key(|(bytes, _)| bytes.start);
        let pieces: Vec<_> = taken.iter().filter(|(bytes, _)| !bytes.is_empty()).cloned().collect();
        let mut leaving = if bytes == 0 { Vec::new() } else { self.gap(bytes, &pieces)? };
        let missing = slots.saturating_sub(self.slots.len() + leaving.len());
        let mut others: Vec<_> = taken.iter().filter_map(|(_, leaves)| *leaves).collect();
        others.sort_unstable();
        others.retain(|(_, digest)| !leaving.contains(digest));
        if others.len() < missing {
            return None;
        }
        leaving.extend(others.into_iter().take(missing).map(|(_, digest)| digest));
        Some(leaving)
    }

    /// Who goes so that so many bytes lie free side by side; `taken` is what is not free, by address, with what it costs where one
    /// may go.
    fn gap(&self, bytes: usize, taken: &[Taken]) -> Option<Vec<Digest>> {
        let mut best: Option<(usize, Vec<Digest>)> = None;
        // A gap begins behind one of those there, or at the beginning.
        for first in 0..=taken.len() {
            let start = first.checked_sub(1).map_or(0, |before| taken[before].0.end);
            let (mut cost, mut gone) = (0, Vec::new());
            for next in first..=taken.len() {
                let end = taken.get(next).map_or(self.free.bytes, |(bytes, _)| bytes.start);
                if end - start >= bytes {
                    if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                        best = Some((cost, gone));
                    }
                    break;
                }
                let Some((_, Some((own, digest)))) = taken.get(next) else { break };
                cost = cost.max(own + 1);
                gone.push(*digest);
            }
        }
        best.map(|(_, gone)| gone)
    }

    fn place(&mut self, bytes: usize) -> Option<Place> {
        let slot = *self.slots.last()?;
        let bytes = self.free.take(bytes)?;
        self.slots.pop();
        Some(Place { slot, bytes })
    }
}

/// The parts of a region that nobody has.
#[derive(Debug)]
struct Free {
    /// Of the region.
    bytes: usize,
    /// Where each begins, and its length. No two of them touch.
    parts: BTreeMap<usize, usize>,
}

impl Free {
    fn new(bytes: usize) -> Self {
        Self { bytes, parts: BTreeMap::from([(0, bytes)]) }
    }

    /// So many bytes of the smallest part that has them: what is left of it is of the least use.
    fn take(&mut self, bytes: usize) -> Option<Range<usize>> {
        if bytes == 0 {
            return Some(0..0);
        }
        let enough = self.parts.iter().filter(|(_, len)| **len >= bytes);
        let (start, len) =
            enough.min_by_key(|(_, len)| **len).map(|(start, len)| (*start, *len))?;
        self.parts.remove(&start);
        if len > bytes {
            self.parts.insert(start + bytes, len - bytes);
        }
        Some(start..start + bytes)
    }

    fn give_back(&mut self, bytes: Range<usize>) {
        if bytes.is_empty() {
            return;
        }
        let Range { mut start, mut end } = bytes;
        if let Some((before, len)) =
            self.parts.range(..start).next_back().map(|(at, len)| (*at, *len))
            && before + len == start
        {
            self.parts.remove(&before);
            start = before;
        }
        if let Some(len) = self.parts.remove(&end) {
            end += len;
        }
        self.parts.insert(start, end - start);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest(id: u8) -> Digest {
        Digest::of(&[id], &[])
    }

    fn kept(ids: &[u8]) -> BTreeSet<Digest> {
        ids.iter().map(|id| digest(*id)).collect()
    }

    fn want(residents: &mut Residents, id: u8, bytes: usize, keep: &[u8]) -> Option<Wish> {
        residents.want(&[(digest(id), bytes)], &kept(keep)).map(|mut wishes| wishes.remove(0))
    }

    fn bring(residents: &mut Residents, id: u8, bytes: usize, keep: &[u8]) -> Range<usize> {
        let Some(Wish::Bring(place)) = want(residents, id, bytes, keep) else {
            panic!("{id} is not brought")
        };
        residents.arrive(digest(id));
        place.bytes
    }

    #[test]
    fn who_was_used_longest_ago_goes_first_and_the_kept_stay() {
        let mut residents = Residents::new(100, 9);
        assert_eq!(bring(&mut residents, 1, 40, &[]), 0..40);
        assert_eq!(bring(&mut residents, 2, 40, &[]), 40..80);
        assert!(residents.slot(digest(1)).is_some());
        assert_eq!(bring(&mut residents, 3, 30, &[]), 40..70, "2 goes, then what is left is one");
        assert_eq!(residents.slot(digest(2)), None);
        assert_eq!(want(&mut residents, 4, 61, &[1]), None);
        assert_eq!(residents.arrived().len(), 2, "nobody goes for what does not fit");
        let Some(Wish::Bring(place)) = want(&mut residents, 4, 60, &[1]) else { panic!("it fits") };
        assert_eq!(place.bytes, 40..100);
        assert_eq!(want(&mut residents, 4, 60, &[]), Some(Wish::Coming));
        assert_eq!(residents.slot(digest(4)), None, "nobody runs through what is on its way");
        assert_eq!(want(&mut residents, 5, 41, &[]), None);
        assert!(residents.are_coming());
    }

    #[test]
    fn nobody_goes_where_what_is_free_would_lie_in_pieces() {
        let mut residents = Residents::new(100, 9);
        for (id, bytes) in [(1, 40), (2, 20), (3, 40)] {
            bring(&mut residents, id, bytes, &[]);
        }
        assert_eq!(want(&mut residents, 4, 50, &[2]), None);
        assert_eq!(residents.arrived().len(), 3);
        assert_eq!(bring(&mut residents, 4, 50, &[3]), 0..50);
    }

    #[test]
    fn the_parts_of_a_mix_come_together() {
        let mut residents = Residents::new(100, 9);
        bring(&mut residents, 1, 30, &[]);
        bring(&mut residents, 2, 30, &[]);
        residents.forget(digest(1));
        // 2 lies in the middle: beside it there is no room for 3.
        let mix = [(digest(2), 30), (digest(3), 60)];
        assert_eq!(residents.want(&mix, &kept(&[2])), None, "somebody runs through 2");
        assert!(residents.slot(digest(2)).is_some());
        let wishes = residents.want(&mix, &kept(&[])).unwrap();
        assert!(wishes.iter().all(|wish| matches!(wish, Wish::Bring(_))), "{wishes:?}");
        assert_eq!(residents.want(&mix, &kept(&[])), Some(vec![Wish::Coming, Wish::Coming]));
        let large = [(digest(4), 50), (digest(5), 51)];
        assert_eq!(Residents::new(100, 9).want(&large, &kept(&[])), None);
    }

    #[test]
    fn without_a_place_in_the_tables_nobody_comes() {
        let mut residents = Residents::new(100, 1);
        bring(&mut residents, 1, 10, &[]);
        assert_eq!(want(&mut residents, 2, 10, &[1]), None);
        bring(&mut residents, 2, 10, &[]);
        assert_eq!(residents.slot(digest(1)), None);
    }

    /// What happens, to whom of how many bytes, and who is kept.
    fn events() -> impl Strategy<Value = Vec<(u8, Vec<u8>, Vec<u8>)>> {
        let some = |most| prop::collection::vec(0_u8..12, 0..most);
        prop::collection::vec((0_u8..5, some(4), some(4)), 1..150)
    }

    proptest! {
        #[test]
        fn pieces_never_overlap_and_nothing_is_lost(events in events()) {
            let (all, slots) = (100, 5);
            // One adapter has one size.
            let size = |id: u8| usize::from(id) * 7 % 53;
            let mut residents = Residents::new(all, slots);
            for (event, ids, keep) in events {
                let before: Vec<_> =
                    residents.by_use.iter().map(|(digest, one)| (*digest, one.clone())).collect();
                let ids: BTreeSet<u8> = ids.into_iter().collect();
                match event {
                    0 => ids.iter().for_each(|id| residents.arrive(digest(*id))),
                    1 => ids.iter().for_each(|id| residents.forget(digest(*id))),
                    _ => {
                        let parts: Vec<_> = ids.iter().map(|id| (digest(*id), size(*id))).collect();
                        let wishes = residents.want(&parts, &kept(&keep));
                        let place = |one: Digest| residents.by_use.peek(&one).map(|one| one.place.clone());
                        for (other, one) in &before {
                            if kept(&keep).contains(other) || !one.arrived || wishes.is_none() {
                                prop_assert_eq!(place(*other), Some(one.place.clone()), "it stays");
                            }
                        }
                        for ((own, bytes), wish) in parts.iter().zip(wishes.into_iter().flatten()) {
                            prop_assert_eq!(place(*own).unwrap().bytes.len(), *bytes);
                            if let Wish::Bring(to) = wish {
                                prop_assert_eq!(Some(to), place(*own));
                            }
                        }
                    }
                }
                let mut there: Vec<_> =
                    residents.by_use.iter().map(|(_, one)| one.place.clone()).collect();
                let own: BTreeSet<_> = there.iter().map(|place| place.slot).collect();
                prop_assert_eq!(own.len() + residents.slots.len(), slots);
                there.retain(|place| !place.bytes.is_empty());
                there.sort_by_key(|place| place.bytes.start);
                prop_assert!(there.is_sorted_by(|one, next| one.bytes.end <= next.bytes.start));
                prop_assert!(there.last().is_none_or(|last| last.bytes.end <= all));
                let taken: usize = there.iter().map(|place| place.bytes.len()).sum();
                let free = &residents.free.parts;
                prop_assert_eq!(taken + free.values().sum::<usize>(), all);
                prop_assert!(free.iter().zip(free.iter().skip(1)).all(|(one, next)| one.0 + one.1 < *next.0));
            }
        }
    }
}
