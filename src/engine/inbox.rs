//! Where the engine's handles and its thread meet.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::{
    answer::Answer,
    job::{Lane, Refused},
    stats::Stats,
};

/// New jobs on the way in, numbers on the way out.
///
/// A std mutex: it is held for a few moves, never across an await or a computation. What it protects is
/// whole between any two statements, so a poisoned lock is as good as any.
#[derive(Debug)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    /// A job or a new phase is there.
    news: Condvar,
    /// Most jobs that may run and wait together.
    max_jobs: usize,
}

#[derive(Debug)]
struct State {
    arrivals: Vec<(Answer, Lane)>,
    /// As of the engine's latest step. `waiting` includes what it has taken since, not `arrivals`.
    stats: Stats,
    phase: Phase,
}

/// How far the engine is on its way to its end; it only goes forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Takes jobs.
    Open,
    /// Takes none, finishes those it has.
    Draining,
    /// Fails those it has; also where it has ended.
    Aborting,
}

impl Inbox {
    /// Open and empty.
    pub(crate) fn new(max_jobs: usize) -> Self {
        let state = State { arrivals: Vec::new(), stats: Stats::default(), phase: Phase::Open };
        Self { state: Mutex::new(state), news: Condvar::new(), max_jobs }
    }

    /// Leaves a job for the engine.
    pub(crate) fn put(&self, answer: Answer, lane: Lane) -> Result<(), Refused> {
        let mut state = self.lock();
        if state.phase > Phase::Open {
            return Err(Refused::Stopping);
        }
        // Not by those who wait alone: a burst may come in while all places are free and a step is being computed.
        let waiting = state.waiting();
        if state.stats.running + waiting >= self.max_jobs {
            return Err(Refused::Full { waiting });
        }
        state.arrivals.push((answer, lane));
        drop(state);
        self.news.notify_one();
        Ok(())
    }

    /// Moves on to `phase`, unless it is there already.
    pub(crate) fn advance(&self, phase: Phase) {
        let mut state = self.lock();
        state.phase = state.phase.max(phase);
        drop(state);
        self.news.notify_one();
    }

    /// Sleeps until a job is there or the phase is no longer open.
    pub(crate) fn wait(&self) {
        let quiet = |state: &mut State| state.arrivals.is_empty() && state.phase == Phase::Open;
        drop(self.news.wait_while(self.lock(), quiet).unwrap_or_else(PoisonError::into_inner));
    }

    /// What came in.
    pub(crate) fn receive(&self) -> (Vec<(Answer, Lane)>, Phase) {
        let mut state = self.lock();
        let arrivals = std::mem::take(&mut state.arrivals);
        state.stats.waiting += arrivals.len();
        (arrivals, state.phase)
    }

    /// Replaces the numbers.
    pub(crate) fn publish(&self, stats: &Stats) {
        self.lock().stats.clone_from(stats);
    }

    /// The numbers.
    pub(crate) fn stats(&self) -> Stats {
        let state = self.lock();
        Stats { waiting: state.waiting(), ..state.stats.clone() }
    }

    /// The engine has ended: jobs it has not taken are dropped, which tells their readers.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.phase = Phase::Aborting;
        let orphans = std::mem::take(&mut state.arrivals);
        // Leases run their owner's code when dropped: not under the lock.
        drop(state);
        drop(orphans);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn waiting(&self) -> usize {
        self.stats.waiting + self.arrivals.len()
    }
}
