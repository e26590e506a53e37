//! The line before the engine: one queue per lane, and first whoever has been given least.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound,
};

use super::{
    job::Lane,
    sequence::{Sequence, SequenceId},
    slots::Slots,
};

/// So many others are admitted past the first of a lane that finds no slot, before a slot is emptied for it.
///
/// Small enough that a rare adapter waits for tens of requests and not for hundreds, large enough that
/// slots are not emptied all the time where there are more adapters than slots.
const PATIENCE: usize = 32;

/// Sequences that do not run.
///
/// - Those preempted stand before all others, in the order in which they were first admitted.
/// - No lane is empty.
#[derive(Debug)]
pub(crate) struct Waiting {
    preempted: VecDeque<Sequence>,
    lanes: BTreeMap<Lane, VecDeque<Sequence>>,
    /// The lane that was served last; of those that have been given the same, the next one after it is first.
    served: Lane,
}

/// Where in the line a sequence stands.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// The first of those preempted.
    Preempted,
    /// So far behind the first of a lane.
    Lane(Lane, usize),
}

impl Waiting {
    /// Nobody.
    pub(crate) fn new() -> Self {
        Self { preempted: VecDeque::new(), lanes: BTreeMap::new(), served: Lane(u32::MAX) }
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.preempted.len() + self.lanes.values().map(VecDeque::len).sum::<usize>()
    }

    /// Lanes of those that wait, and how many; one may come twice.
    pub(crate) fn lanes(&self) -> impl Iterator<Item = (Lane, usize)> {
        let preempted = self.preempted.iter().map(|sequence| (sequence.lane(), 1));
        preempted.chain(self.lanes.iter().map(|(lane, queue)| (*lane, queue.len())))
    }

    /// Puts a new sequence at the end of its lane.
    pub(crate) fn push(&mut self, sequence: Sequence) {
        self.lanes.entry(sequence.lane()).or_default().push_back(sequence);
    }

    /// Puts a sequence that ran before everybody else.
    pub(crate) fn push_preempted(&mut self, sequence: Sequence) {
        self.preempted.push_front(sequence);
    }

    /// Puts a sequence that ran before all others of its lane.
    pub(crate) fn push_displaced(&mut self, sequence: Sequence) {
        self.lanes.entry(sequence.lane()).or_default().push_front(sequence);
    }

    /// Who is next, of those that `slots` admit. `given` says what a lane has been given, and `open` whether one more may come in.
    ///
    /// First those preempted, whatever `slots` say: they ran together a moment ago, and nobody was admitted since.
    /// Then those overdue. Then the lane that has been given least, and within it whoever came first. Nobody comes in past a
    /// lane that is not open and has been given less: what runs of it would be left behind.
    pub(crate) fn next(
        &self,
        slots: &Slots,
        given: impl Fn(Lane) -> u64,
        open: impl Fn(Lane) -> bool,
    ) -> Option<Place> {
        if !self.preempted.is_empty() {
            return Some(Place::Preempted);
        }
        let overdue = self
            .overdue()
            .filter(|sequence| slots.admits(sequence.adapter()))
            .max_by_key(|sequence| sequence.passed_over());
        if let Some(sequence) = overdue {
            return Some(Place::Lane(sequence.lane(), 0));
        }
        let mut lanes: Vec<_> = self.in_turn().collect();
        lanes.sort_by_cached_key(|lane| given(*lane));
        lanes.into_iter().take_while(|lane| open(*lane)).find_map(|lane| {
            let index =
                self.lanes[&lane].iter().position(|waiting| slots.admits(waiting.adapter()))?;
            Some(Place::Lane(lane, index))
        })
    }

    /// Those that have run before; they come first, whatever is there.
    pub(crate) fn preempted(&self) -> impl Iterator<Item = SequenceId> {
        self.preempted.iter().map(Sequence::id)
    }

    /// Others in about the order in which they come: those overdue, then the first of each lane, the second of each, and so on.
    pub(crate) fn upcoming(&self, given: impl Fn(Lane) -> u64) -> impl Iterator<Item = SequenceId> {
        let mut lanes: Vec<_> = self.in_turn().collect();
        lanes.sort_by_cached_key(|lane| given(*lane));
        let longest = self.lanes.values().map(VecDeque::len).max().unwrap_or(0);
        let at = move |place: usize| {
            let lanes = lanes.clone();
            lanes.into_iter().filter_map(move |lane| self.lanes[&lane].get(place))
        };
        self.overdue().chain((0..longest).flat_map(at)).map(Sequence::id)
    }

    /// Lanes in ascending order, beginning behind the one served last and going round.
    fn in_turn(&self) -> impl Iterator<Item = Lane> {
        let after = self.lanes.range((Bound::Excluded(self.served), Bound::Unbounded));
        after.chain(self.lanes.range(..=self.served)).map(|(lane, _)| *lane)
    }

    /// The sequence that stands there.
    pub(crate) fn get(&self, place: Place) -> Option<&Sequence> {
        match place {
            Place::Preempted => self.preempted.front(),
            Place::Lane(lane, index) => self.lanes.get(&lane)?.get(index),
        }
    }

    /// Takes out the sequence that stands there.
    pub(crate) fn take(&mut self, place: Place) -> Option<Sequence> {
        match place {
            Place::Preempted => self.preempted.pop_front(),
            Place::Lane(lane, index) => {
                let queue = self.lanes.get_mut(&lane)?;
                let sequence = queue.remove(index);
                if queue.is_empty() {
                    self.lanes.remove(&lane);
                }
                self.served = lane;
                sequence
            }
        }
    }

    /// Takes out a sequence wherever it stands.
    pub(crate) fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        if let Some(index) = self.preempted.iter().position(|sequence| sequence.id() == id) {
            return self.preempted.remove(index);
        }
        let (lane, index) = self.lanes.iter().find_map(|(lane, queue)| {
            Some((*lane, queue.iter().position(|sequence| sequence.id() == id)?))
        })?;
        // Who leaves has not been served: the turn stays where it is.
        let served = self.served;
        let sequence = self.take(Place::Lane(lane, index));
        self.served = served;
        sequence
    }

    /// A sequence, wherever it stands.
    pub(crate) fn find(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        let all = self.preempted.iter_mut().chain(self.lanes.values_mut().flatten());
        all.into_iter().find(|sequence| sequence.id() == id)
    }

    /// Somebody was admitted: the first of each lane that finds no slot has been passed over once more.
    pub(crate) fn pass_over(&mut self, slots: &Slots) {
        for first in self.lanes.values_mut().filter_map(VecDeque::front_mut) {
            if !slots.admits(first.adapter()) {
                first.pass_over();
            }
        }
    }

    /// Different adapters for which a slot must be emptied.
    pub(crate) fn overdue_adapters(&self, slots: &Slots) -> usize {
        let adapters = self.overdue().map(Sequence::adapter);
        adapters.filter(|adapter| !slots.admits(*adapter)).collect::<BTreeSet<_>>().len()
    }

    /// The first of each lane, where others passed it too often. Only the first: a lane cannot jump
    /// the line by asking for many adapters.
    fn overdue(&self) -> impl Iterator<Item = &Sequence> {
        self.lanes
            .values()
            .filter_map(VecDeque::front)
            .filter(|sequence| sequence.passed_over() >= PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::Digest;

    fn sequence(id: u64, lane: u32, adapter: Option<u8>) -> Sequence {
        let adapter = adapter.map(|id| Digest::of(&[id], &[]));
        Sequence::new(SequenceId(id), Lane(lane), adapter, 4, 3..usize::MAX)
    }

    fn served(waiting: &mut Waiting, slots: &Slots) -> Vec<u64> {
        std::iter::from_fn(|| waiting.take(waiting.next(slots, |_| 0, |_| true)?))
            .map(|sequence| sequence.id().0)
            .collect()
    }

    #[test]
    fn lanes_given_the_same_take_turns_however_long_they_are() {
        let mut waiting = Waiting::new();
        for (id, lane) in [(0, 7), (1, 7), (2, 7), (3, 1), (4, 9), (5, 9)] {
            waiting.push(sequence(id, lane, None));
        }
        assert_eq!(waiting.len(), 6);
        assert_eq!(served(&mut waiting, &Slots::new(1)), [3, 0, 4, 1, 5, 2]);
    }

    #[test]
    fn who_ran_before_comes_first() {
        let mut waiting = Waiting::new();
        waiting.push(sequence(2, 0, None));
        waiting.push_preempted(sequence(1, 5, None));
        waiting.push_preempted(sequence(0, 5, None));
        assert_eq!(served(&mut waiting, &Slots::new(1)), [0, 1, 2]);
    }

    #[test]
    fn a_job_without_a_slot_is_passed_until_its_patience_ends() {
        let mut slots = Slots::new(1);
        let running = sequence(99, 0, Some(1));
        slots.bind(running.adapter());
        let mut waiting = Waiting::new();
        waiting.push(sequence(0, 0, Some(2)));
        waiting.push(sequence(1, 0, Some(3)));
        for id in 0..PATIENCE as u64 {
            assert_eq!(waiting.overdue_adapters(&slots), 0);
            waiting.push(sequence(10 + id, 1, Some(1)));
            let place = waiting.next(&slots, |_| 0, |_| true).unwrap();
            assert_eq!(waiting.take(place).unwrap().id().0, 10 + id);
            waiting.pass_over(&slots);
        }
        assert_eq!(waiting.overdue_adapters(&slots), 1, "only the first of the lane");
        slots.drain(1);
        waiting.push(sequence(50, 1, Some(1)));
        waiting.push(sequence(51, 1, None));
        let place = waiting.next(&slots, |_| 0, |_| true).unwrap();
        assert_eq!(waiting.take(place).unwrap().id().0, 51, "the base needs no slot");
        slots.release(running.adapter());
        let place = waiting.next(&slots, |_| 0, |_| false).unwrap();
        assert_eq!(waiting.take(place).unwrap().id().0, 0, "even where its lane is closed");
    }

    #[test]
    fn leaving_the_line_is_no_turn() {
        let mut waiting = Waiting::new();
        for (id, lane) in [(0, 0), (1, 1), (2, 2)] {
            waiting.push(sequence(id, lane, None));
        }
        assert!(waiting.remove(SequenceId(1)).is_some());
        assert!(waiting.remove(SequenceId(1)).is_none());
        assert_eq!(served(&mut waiting, &Slots::new(1)), [0, 2]);
    }
}
