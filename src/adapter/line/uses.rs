//! Which adapters make room first: those that were used once before those that are used again and again.
//!
//! By last use alone, whoever walks through many adapters, using each once, drives out what all others use all the time.
//! What tells the two apart is the use before the last one. This is LRU-2 (O'Neil, O'Neil and Weikum, "The LRU-K Page
//! Replacement Algorithm", SIGMOD 1993), by bytes:
//!
//! - An adapter that was used twice is *hot*, and of these the one whose use before the last is the longest ago goes
//!   first. All others are *newcomers*, and go in the order of their last use.
//! - Uses that follow each other closely are one, so that three questions in a row do not make an adapter hot (the
//!   paper's correlated references). Such a burst is over after [`BURST`]; where loads come fast, already when half of
//!   the memory has been loaded anew, or nothing could be told apart that comes and goes within that time. It is
//!   measured from the use that counts: what is asked for each second all day long is used more than once.
//! - What had to go is remembered, so that it is hot when it comes again (the paper's retained information). After
//!   [`MEMORY`] without use all is forgotten: what was hot yesterday is a newcomer, and the first to go.
//! - Newcomers have a tenth of the memory in which they are on a par with hot adapters: whoever has waited longest goes,
//!   by the last use of the one and by the use before the last of the other. Beyond that they go first. It keeps them
//!   from driving each other out while a burst lasts; the share is the one of the small queue of S3-FIFO (Yang and
//!   others, "FIFO queues are all you need for cache eviction", SOSP 2023).

use std::{
    iter,
    time::{Duration, Instant},
};

use crate::lora::Digest;

/// How long uses are one. It covers some answers to one conversation, and is short beside what an adapter is hot for.
pub(super) const BURST: Duration = Duration::from_secs(30);

/// How long a use is remembered: over pauses of a working day, not over its end.
pub(super) const MEMORY: Duration = Duration::from_hours(1);

/// Newcomers' part of the memory.
const NEWCOMERS: usize = 10;

/// How far things are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) now: Instant,
    /// Uses so far: what happens at the same time still has an order.
    pub(super) turn: u64,
    /// Bytes that have been loaded so far.
    pub(super) loaded: u64,
}

/// When an adapter was used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Uses {
    latest: Moment,
    /// The beginning of the burst that the latest is of.
    counted: Moment,
    /// The beginning of the one before.
    before: Option<Instant>,
}

impl Uses {
    /// It is used for the first time.
    pub(super) fn first(at: Moment) -> Self {
        Self { latest: at, counted: at, before: None }
    }

    /// The same, used once more, in so much `memory`.
    pub(super) fn again(self, at: Moment, memory: usize) -> Self {
        let since = at.now.saturating_duration_since(self.counted.now);
        let loaded = at.loaded - self.counted.loaded;
        if since < BURST && loaded < memory as u64 / 2 {
            return Self { latest: at, ..self };
        }
        let before = (since <= MEMORY).then_some(self.counted.now);
        Self { latest: at, counted: at, before }
    }

    /// Where it stands among others now.
    pub(super) fn rank(&self, now: Instant) -> Rank {
        let Moment { now: latest, turn, .. } = self.latest;
        let is_known = now.saturating_duration_since(latest) <= MEMORY;
        match self.before.filter(|_| is_known) {
            Some(before) => Rank::Hot { before, turn },
            None => Rank::Newcomer { latest, turn },
        }
    }
}

/// Lower ones go first, as far as newcomers have more than their part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// Used once, as far as is known.
    Newcomer { latest: Instant, turn: u64 },
    /// Used before, too.
    Hot { before: Instant, turn: u64 },
}

impl Rank {
    pub(super) fn is_newcomer(self) -> bool {
        matches!(self, Self::Newcomer { .. })
    }

    /// What newcomers and hot adapters are compared by.
    fn since(self) -> Instant {
        match self {
            Self::Newcomer { latest: since, .. } | Self::Hot { before: since, .. } => since,
        }
    }
}

/// Something that may make room.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) digest: Digest,
    pub(super) bytes: usize,
    pub(super) rank: Rank,
}

/// Candidates in the order in which they make room, where newcomers have so many bytes of so much `memory`: all of them,
/// also those that are no candidates, and the one that room is made for.
pub(super) fn in_order(
    mut candidates: Vec<Candidate>,
    newcomers: usize,
    memory: usize,
) -> impl Iterator<Item = Candidate> {
    candidates.sort_unstable_by_key(|candidate| candidate.rank);
    let hot = candidates.partition_point(|candidate| candidate.rank.is_newcomer());
    let hot = candidates.split_off(hot);
    let (mut new, mut hot) = (candidates.into_iter().peekable(), hot.into_iter().peekable());
    let mut beyond = newcomers.saturating_sub(memory / NEWCOMERS);
    iter::from_fn(move || {
        let first = match (new.peek(), hot.peek()) {
            (Some(newcomer), Some(old)) => beyond > 0 || newcomer.rank.since() <= old.rank.since(),
            (newcomer, _) => newcomer.is_some(),
        };
        if !first {
            return hot.next();
        }
        let newcomer = new.next()?;
        beyond = beyond.saturating_sub(newcomer.bytes);
        Some(newcomer)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A moment so many seconds after a beginning, and the number of the use.
    fn at(start: Instant, seconds: u32) -> Moment {
        Moment { now: start + seconds * SECOND, turn: u64::from(seconds), loaded: 0 }
    }

    fn used(start: Instant, seconds: &[u32]) -> Uses {
        let first = Uses::first(at(start, seconds[0]));
        seconds[1..].iter().fold(first, |uses, second| uses.again(at(start, *second), 100))
    }

    fn is_hot(start: Instant, seconds: &[u32], now: u32) -> bool {
        !used(start, seconds).rank(at(start, now).now).is_newcomer()
    }

    #[test]
    fn a_burst_is_one_use_and_constant_use_is_more_than_one() {
        let start = Instant::now();
        assert!(!is_hot(start, &[0], 1));
        assert!(!is_hot(start, &[0, 1, 2, 29], 29));
        assert!(is_hot(start, &[0, 30], 30));
        assert!(is_hot(start, &(0..60).collect::<Vec<_>>(), 60), "once a second");
    }

    #[test]
    fn where_half_of_the_memory_was_loaded_anew_a_burst_is_over() {
        let start = Instant::now();
        let uses = used(start, &[0]);
        let later =
            |loaded| uses.again(Moment { loaded, ..at(start, 1) }, 100).rank(start + SECOND);
        assert!(later(49).is_newcomer());
        assert!(!later(50).is_newcomer());
    }

    #[test]
    fn what_was_hot_yesterday_is_a_newcomer() {
        let (start, hour) = (Instant::now(), 3600);
        assert!(is_hot(start, &[0, 60], 60 + hour));
        assert!(!is_hot(start, &[0, 60], 61 + hour), "nobody used it for an hour");
        assert!(!is_hot(start, &[0, 60, 61 + hour], 61 + hour), "nor does it matter after that");
    }

    fn order(candidates: &[(u8, &[u32])], newcomers: usize, memory: usize) -> Vec<u8> {
        let start = Instant::now();
        let digest = |name: u8| Digest::of(&[name], b"");
        let candidate = |(name, seconds): &(u8, &[u32])| Candidate {
            digest: digest(*name),
            bytes: 10,
            rank: used(start, seconds).rank(at(start, 1000).now),
        };
        let ordered = in_order(candidates.iter().map(candidate).collect(), newcomers, memory);
        let name = |of: Candidate| (0..9).find(|name| digest(*name) == of.digest).unwrap();
        ordered.map(name).collect()
    }

    #[test]
    fn newcomers_go_first_where_they_have_more_than_their_part() {
        let candidates: [(u8, &[u32]); 4] =
            [(1, &[100, 200]), (2, &[50, 300]), (3, &[400]), (4, &[350])];
        assert_eq!(order(&candidates, 20, 100), [4, 2, 1, 3], "one is beyond it");
        assert_eq!(order(&candidates, 30, 100), [4, 3, 2, 1], "both are");
        assert_eq!(order(&candidates, 20, 200), [2, 1, 4, 3], "none is");
        let idle: [(u8, &[u32]); 2] = [(1, &[100, 200]), (2, &[99])];
        assert_eq!(order(&idle, 10, 100), [2, 1], "who has waited longest goes");
    }
}
