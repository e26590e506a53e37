//! Where the engine's handles and its thread meet.

use std::{
    collections::BTreeMap,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use super::{
    answer::Answer,
    guide::Guided,
    job::{Lane, Refused},
    stats::Stats,
};

/// A lane may have at most so many times as many jobs as there is still room for: alone seven eighths of all, so that there is
/// room for whoever has few (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", IEEE/ACM
/// Transactions on Networking 6, 1998).
const TIMES_THE_ROOM: usize = 7;

/// New jobs on the way in, numbers on the way out.
///
/// A std mutex: it is held for a few moves, never across an await or a computation. What it protects is
/// whole between any two statements, so a poisoned lock is as good as any.
#[derive(Debug)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    /// A job, a guide or a new phase is there.
    news: Condvar,
    /// Most jobs that may run and wait together.
    max_jobs: usize,
}

#[derive(Debug)]
struct State {
    arrivals: Vec<Answer>,
    /// Guides that have done their work.
    guided: Vec<Guided>,
    /// As of the engine's latest step. `waiting` includes what it has taken since, not `arrivals`.
    stats: Stats,
    /// Jobs of each lane, likewise.
    jobs: BTreeMap<Lane, usize>,
    phase: Phase,
}

/// What has come in since the engine looked last.
#[derive(Debug)]
pub(crate) struct News {
    /// New jobs.
    pub(crate) arrivals: Vec<Answer>,
    /// Guides that have done their work.
    pub(crate) guided: Vec<Guided>,
    /// How far it is to go on.
    pub(crate) phase: Phase,
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
        let state = State {
            arrivals: Vec::new(),
            guided: Vec::new(),
            stats: Stats::default(),
            jobs: BTreeMap::new(),
            phase: Phase::Open,
        };
        Self { state: Mutex::new(state), news: Condvar::new(), max_jobs }
    }

    /// Leaves a job for the engine.
    pub(crate) fn put(&self, answer: Answer) -> Result<(), Refused> {
        let mut state = self.lock();
        if state.phase > Phase::Open {
            return Err(Refused::Stopping);
        }
        // Not by those who wait alone: a burst may come in while all places are free and a step is being computed.
        let waiting = state.waiting();
        let room = self.max_jobs.saturating_sub(state.stats.running + waiting);
        if room == 0 || state.jobs(answer.lane()) >= room.saturating_mul(TIMES_THE_ROOM) {
            return Err(Refused::Full { waiting });
        }
        state.arrivals.push(answer);
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

    /// Leaves a guide for the engine.
    pub(crate) fn guided(&self, guided: Guided) {
        let mut state = self.lock();
        if state.phase == Phase::Aborting {
            // Nobody waits for it.
            drop(state);
            return;
        }
        state.guided.push(guided);
        drop(state);
        self.news.notify_one();
    }

    /// Sleeps until a job is there or the phase is no longer open.
    pub(crate) fn wait(&self) {
        self.wait_while(|state| state.phase == Phase::Open);
    }

    /// Sleeps until a job or a guide is there or all are to be ended.
    pub(crate) fn wait_for_guides(&self) {
        self.wait_while(|state| state.phase < Phase::Aborting && state.guided.is_empty());
    }

    fn wait_while(&self, quiet: impl Fn(&State) -> bool) {
        let quiet = |state: &mut State| state.arrivals.is_empty() && quiet(state);
        drop(self.news.wait_while(self.lock(), quiet).unwrap_or_else(PoisonError::into_inner));
    }

    /// What came in.
    pub(crate) fn receive(&self) -> News {
        let mut state = self.lock();
        let arrivals = std::mem::take(&mut state.arrivals);
        let guided = std::mem::take(&mut state.guided);
        state.stats.waiting += arrivals.len();
        for answer in &arrivals {
            *state.jobs.entry(answer.lane()).or_default() += 1;
        }
        News { arrivals, guided, phase: state.phase }
    }

    /// Replaces the numbers, and those of each lane's jobs.
    pub(crate) fn publish(&self, stats: &Stats, jobs: BTreeMap<Lane, usize>) {
        let mut state = self.lock();
        state.stats.clone_from(stats);
        state.jobs = jobs;
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
        let orphans = (std::mem::take(&mut state.arrivals), std::mem::take(&mut state.guided));
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

    fn jobs(&self, lane: Lane) -> usize {
        let taken = self.jobs.get(&lane).copied().unwrap_or(0);
        taken + self.arrivals.iter().filter(|answer| answer.lane() == lane).count()
    }
}
