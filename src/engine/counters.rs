//! What each lane has been given: virtual token counters.
//!
//! After Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024, arXiv 2401.00588). A lane's counter rises with
//! each token of a prompt that is computed for it and, by twice as much, with each that is drawn for it; whoever has the least is
//! served first. So lanes that always want more get the same within a bound, whatever their requests look like. What is at hand
//! (a prefix), and what is computed again after a preemption, costs nothing.
//!
//! A lane that wants something again after a while is lifted to the least counter of those that want something, as in the
//! paper, so that nobody saves up. Here it need not be lifted higher than to an allowance below the greatest: as long as it asks
//! for little it is a step's rows ahead, and its prompts need not wait for those of a lane that asks for much.

use std::collections::{BTreeMap, BTreeSet};

use super::job::Lane;

/// What a token of a prompt costs; both weights as in the paper.
const PROMPT_WEIGHT: u64 = 1;
/// What a token of an answer costs.
const ANSWER_WEIGHT: u64 = 2;

/// So many lanes that have been given more than others are remembered while they want nothing.
const MOST_IDLE: usize = 1024;

/// A counter for each lane that runs or waits, and for those that left with more than they would come back with.
#[derive(Debug)]
pub(crate) struct Counters {
    /// How far below the greatest a lane may begin.
    allowance: u64,
    given: BTreeMap<Lane, u64>,
}

impl Counters {
    /// Nobody has been given anything.
    pub(crate) fn new(allowance: usize) -> Self {
        Self { allowance: allowance as u64, given: BTreeMap::new() }
    }

    /// What a lane has been given.
    pub(crate) fn of(&self, lane: Lane) -> u64 {
        self.given.get(&lane).copied().unwrap_or(0)
    }

    /// A lane was given so many tokens of a prompt, and of an answer.
    pub(crate) fn charge(&mut self, lane: Lane, prompt: usize, answer: usize) {
        *self.given.entry(lane).or_default() +=
            PROMPT_WEIGHT * prompt as u64 + ANSWER_WEIGHT * answer as u64;
    }

    /// A lane wants something that wanted nothing. Of those `present`, which run or wait, some want something too.
    pub(crate) fn join(
        &mut self,
        lane: Lane,
        wanting: impl Iterator<Item = Lane>,
        present: &BTreeSet<Lane>,
    ) {
        let greatest = present.iter().map(|lane| self.of(*lane)).max().unwrap_or(0);
        let least = wanting.map(|lane| self.of(lane)).min().unwrap_or(greatest);
        let level = least.min(greatest.saturating_sub(self.allowance));
        self.forget(level, present);
        let given = self.given.entry(lane).or_default();
        *given = level.max(*given);
    }

    /// Nobody is there, so nobody is owed anything.
    pub(crate) fn clear(&mut self) {
        self.given.clear();
    }

    /// Who is not there is remembered while it would come back with more than `level`; those with the least are forgotten first.
    fn forget(&mut self, level: u64, present: &BTreeSet<Lane>) {
        self.given.retain(|lane, given| present.contains(lane) || *given > level);
        let absent = self.given.iter().filter(|(lane, _)| !present.contains(lane));
        let mut absent: Vec<_> = absent.map(|(lane, given)| (*given, *lane)).collect();
        absent.sort_unstable();
        absent.truncate(absent.len().saturating_sub(MOST_IDLE));
        for (_, lane) in absent {
            self.given.remove(&lane);
        }
    }

    /// How many lanes are remembered.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.given.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(numbers: impl IntoIterator<Item = u32>) -> BTreeSet<Lane> {
        numbers.into_iter().map(Lane).collect()
    }

    #[test]
    fn who_comes_anew_is_level_with_the_least_or_an_allowance_below_the_greatest() {
        let mut counters = Counters::new(10);
        counters.charge(Lane(0), 50, 25);
        counters.charge(Lane(1), 95, 0);
        assert_eq!(counters.of(Lane(0)), 100);
        let mut join = |lane, wanting: &[u32]| {
            let wanting = wanting.iter().copied().map(Lane);
            counters.join(Lane(lane), wanting, &lanes([0, 1]));
            counters.of(Lane(lane))
        };
        assert_eq!(join(2, &[0, 1]), 90);
        assert_eq!(join(3, &[]), 90, "whatever others have is too much for none");
        assert_eq!(join(1, &[0]), 95, "nobody is given less than it was");
        counters.charge(Lane(0), 100, 0);
        counters.join(Lane(4), [Lane(1)].into_iter(), &lanes([0, 1]));
        assert_eq!(counters.of(Lane(4)), 95, "level with the least of those that want something");
    }

    #[test]
    fn debts_are_kept_and_nothing_else_of_who_is_gone() {
        let mut counters = Counters::new(0);
        for (lane, given) in [(0, 100), (1, 90), (2, 200)] {
            counters.charge(Lane(lane), given, 0);
        }
        counters.join(Lane(3), [Lane(0)].into_iter(), &lanes([0]));
        assert_eq!((counters.of(Lane(1)), counters.of(Lane(2))), (0, 200));
        for lane in 10..10_000 {
            counters.charge(Lane(lane), 1000 + lane as usize, 0);
            counters.join(Lane(3), [Lane(0)].into_iter(), &lanes([0, 3]));
            assert!(counters.len() <= MOST_IDLE + 2);
        }
        assert_eq!(counters.of(Lane(2)), 0, "the least is forgotten first");
        assert_eq!(counters.of(Lane(9_999)), 10_999);
    }
}
