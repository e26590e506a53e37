//! Who is let in, and who gives way to them.

use std::collections::BTreeMap;

use super::{Plan, Scheduler};
use crate::engine::{
    job::Lane,
    pages::pages_for,
    sequence::{Sequence, SequenceId},
    waiting::Place,
};

/// What running sequences of a lane hold.
#[derive(Debug, Default)]
struct Held {
    places: usize,
    pages: usize,
}

impl Held {
    fn add(&mut self, sequence: &Sequence) {
        self.places += 1;
        self.pages += sequence.pages().len();
    }

    fn remove(&mut self, sequence: &Sequence) {
        self.places -= 1;
        self.pages -= sequence.pages().len();
    }

    /// It holds more than `share`; one sequence is never too much.
    fn exceeds(&self, share: &Self) -> bool {
        self.places > share.places || (self.places > 1 && self.pages > share.pages)
    }
}

impl Scheduler {
    /// Lets sequences in while there is a place, a slot and pages for all their tokens.
    ///
    /// First in the lane that has been given least, with what its running prompts will be. A lane whose running prompts can fill
    /// the `rows` of this step is given no other: it would only hold a place that another lane can use when its turn comes.
    pub(super) fn admit(&mut self, rows: usize, most: usize, plan: &mut Plan) {
        self.slots.drain(self.waiting.overdue_adapters(&self.slots));
        loop {
            let open = |lane| self.backlog(lane, most) < rows;
            let place = self.waiting.next(&self.slots, |lane| self.given(lane), open);
            let Some(place) = place else { return };
            // Who lacks only pages holds everybody up, or the small would starve the large.
            if !self.make_room(place, plan) {
                return;
            }
            let Some(mut sequence) = self.waiting.take(place) else { return };
            sequence.adopt(&mut self.pages);
            self.slots.bind(sequence.adapter());
            self.waiting.pass_over(&self.slots);
            self.running.push(sequence);
        }
    }

    /// Whether whoever stands at `place` has a place and pages now. If need be, others give way to it.
    fn make_room(&mut self, place: Place, plan: &mut Plan) -> bool {
        let Some(next) = self.waiting.get(place) else { return false };
        if self.fits(next, &[]) {
            return true;
        }
        // Those preempted gave way themselves a moment ago.
        let Place::Lane(..) = place else { return false };
        let Some(leaving) = self.surplus(next) else { return false };
        for id in leaving {
            if let Some(index) = self.running.iter().position(|sequence| sequence.id() == id) {
                let sequence = self.running.remove(index);
                let sequence = self.preempt(sequence, plan);
                self.waiting.push_displaced(sequence);
            }
        }
        true
    }

    /// Whether, once those `leaving` are gone, there is a place, and all known tokens of everybody fit with one more page for
    /// each, so that a sequence let in is not preempted at once. Alone, a sequence always fits.
    fn fits(&self, next: &Sequence, leaving: &[SequenceId]) -> bool {
        let (mut places, mut pages, mut promised) = (self.max_running, self.pages.free(), 0);
        for sequence in &self.running {
            let own = sequence.pages();
            if leaving.contains(&sequence.id()) {
                pages += self.pages.sole(own);
            } else {
                places -= 1;
                promised += (1 + pages_for(sequence.tokens())).saturating_sub(own.len());
            }
        }
        let alone = places == self.max_running;
        places > 0 && (alone || pages > promised + next.new_pages(&self.pages))
    }

    /// Sequences that give way to `next`: of lanes that have been given more than its lane and hold more places or pages than
    /// the same for each lane would be, the newest. `None` where it would not fit without them either, or its own lane holds as
    /// much as that.
    fn surplus(&self, next: &Sequence) -> Option<Vec<SequenceId>> {
        let mut held: BTreeMap<Lane, Held> = BTreeMap::new();
        for sequence in &self.running {
            held.entry(sequence.lane()).or_default().add(sequence);
        }
        let lanes = self.jobs().len();
        let share =
            Held { places: (self.max_running / lanes).max(1), pages: self.pages.total() / lanes };
        let own = held.remove(&next.lane()).unwrap_or_default();
        let pages = own.pages + next.new_pages(&self.pages);
        if own.places >= share.places || pages > share.pages {
            return None;
        }
        let given = self.given(next.lane());
        held.retain(|lane, _| self.counters.of(*lane) > given);
        let mut leaving = Vec::new();
        for sequence in self.running.iter().rev() {
            let Some(held) = held.get_mut(&sequence.lane()) else { continue };
            if held.exceeds(&share) {
                held.remove(sequence);
                leaving.push(sequence.id());
                if self.fits(next, &leaving) {
                    return Some(leaving);
                }
            }
        }
        None
    }

    /// Rows that the prompts of a lane take of a step in which each may have `most`.
    fn backlog(&self, lane: Lane, most: usize) -> usize {
        let prompts = self.running.iter().filter(|running| running.lane() == lane);
        let pending = prompts.map(Sequence::pending).filter(|pending| *pending > 1);
        pending.map(|pending| pending.min(most)).sum()
    }

    /// What a lane has been given, and will be when its running prompts are computed.
    pub(super) fn given(&self, lane: Lane) -> u64 {
        let prompts = self.running.iter().filter(|running| running.lane() == lane);
        self.counters.of(lane) + prompts.map(|running| running.unpaid() as u64).sum::<u64>()
    }
}
