//! Where the engine's handles and its thread meet.

use std::{
    collections::BTreeMap,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{
    answer::Answer,
    guide::Guided,
    job::{Lane, Refused},
    pace,
    stats::Stats,
};

/// A lane may have at most so many times as many jobs as there is still room for: alone seven eighths of all, so that there is
/// room for whoever has few (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", IEEE/ACM
/// Transactions on Networking 6, 1998).
const TIMES_THE_ROOM: usize = 7;

/// How long deadlines are not looked at where everybody rests.
const LONGEST_REST: Duration = Duration::from_millis(100);

/// New jobs on the way in, numbers on the way out.
///
/// A std mutex: it is held for a few moves, never across an await or a computation. What it protects is
/// whole between any two statements, so a poisoned lock is as good as any.
#[derive(Debug)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    /// A job, a guide or a new phase is there.
    news: Condvar,
    bounds: Bounds,
}

/// What is let in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Most jobs that run.
    pub(crate) running: usize,
    /// Most that wait while so many run.
    pub(crate) waiting: usize,
    /// How long one may have to wait.
    pub(crate) wait: Duration,
}

/// How many jobs a lane has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Jobs {
    pub(crate) running: usize,
    pub(crate) waiting: usize,
}

/// All that the engine tells of itself after a step.
#[derive(Clone, Debug, Default)]
pub(crate) struct Public {
    pub(crate) stats: Stats,
    /// Of each lane that has any.
    pub(crate) jobs: BTreeMap<Lane, Jobs>,
    /// Whether the latest plan left somebody waiting.
    pub(crate) is_pressed: bool,
    /// Jobs that begin a second, while others wait; `None` where that is not known.
    pub(crate) pace: Option<f64>,
}

#[derive(Debug)]
struct State {
    arrivals: Vec<Answer>,
    /// Guides that have done their work.
    guided: Vec<Guided>,
    /// As of the engine's latest step. Those that wait include what it has taken since, not `arrivals`.
    public: Public,
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
    pub(crate) fn new(bounds: Bounds) -> Self {
        let state = State {
            arrivals: Vec::new(),
            guided: Vec::new(),
            public: Public::default(),
            phase: Phase::Open,
        };
        Self { state: Mutex::new(state), news: Condvar::new(), bounds }
    }

    /// Leaves jobs of one lane for the engine: all of them, or none.
    pub(crate) fn put(&self, answers: Vec<Answer>) -> Result<(), Refused> {
        let mut state = self.lock();
        if state.phase > Phase::Open {
            return Err(Refused::Stopping);
        }
        let Some(lane) = answers.first().map(Answer::lane) else { return Ok(()) };
        state.admit(answers.len(), lane, &self.bounds)?;
        state.arrivals.extend(answers);
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
        let quiet = |state: &mut State| state.phase == Phase::Open && state.arrivals.is_empty();
        drop(self.news.wait_while(self.lock(), quiet).unwrap_or_else(PoisonError::into_inner));
    }

    /// Sleeps until a job or a guide is there or all are to be ended.
    pub(crate) fn wait_for_guides(&self) {
        let quiet = |state: &mut State| {
            state.phase < Phase::Aborting && state.guided.is_empty() && state.arrivals.is_empty()
        };
        // Those who wait for something else, as room for their adapter, may have a deadline.
        drop(self.news.wait_timeout_while(self.lock(), LONGEST_REST, quiet));
    }

    /// What came in.
    pub(crate) fn receive(&self) -> News {
        let mut state = self.lock();
        let arrivals = std::mem::take(&mut state.arrivals);
        let guided = std::mem::take(&mut state.guided);
        state.public.stats.waiting += arrivals.len();
        for answer in &arrivals {
            state.public.jobs.entry(answer.lane()).or_default().waiting += 1;
        }
        News { arrivals, guided, phase: state.phase }
    }

    /// Replaces the numbers.
    pub(crate) fn publish(&self, public: Public) {
        self.lock().public = public;
    }

    /// The numbers.
    pub(crate) fn stats(&self) -> Stats {
        let state = self.lock();
        Stats { waiting: state.waiting(), ..state.public.stats.clone() }
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
    /// Refuses so many more jobs of a lane, which are one request, where there is no room for them, or where it would take too long
    /// until the first has a place. The others wait for that one, which is no reason to refuse it.
    fn admit(&self, jobs: usize, lane: Lane, bounds: &Bounds) -> Result<(), Refused> {
        let &Bounds { running: max_running, waiting: max_waiting, wait: most } = bounds;
        let (running, waiting) = (self.public.stats.running, self.waiting());
        // Not by those who wait alone: a burst may come in while all places are free and a step is being computed.
        let room = max_running.saturating_add(max_waiting).saturating_sub(running + waiting);
        let lanes = self.lanes();
        let own = lanes.get(&lane).copied().unwrap_or_default();
        // As the last of them finds it.
        let others = jobs.saturating_sub(1);
        let (last_room, before) = (room.saturating_sub(others), own.running + own.waiting + others);
        let is_full = last_room == 0 || before >= last_room.saturating_mul(TIMES_THE_ROOM);
        // One that is larger than all the room there is would otherwise be told for ever to come again.
        if is_full && running + waiting > 0 {
            return Err(Refused::Full { waiting });
        }
        let Some(pace) = self.public.pace else { return Ok(()) };
        // Those that have come since a plan that left nobody waiting take free places first.
        let free = if self.public.is_pressed { 0 } else { max_running.saturating_sub(running) };
        // Lanes take turns, so that one waits for its own and for as many of each other lane, where these have so many.
        let before = lanes.iter().map(|(other, jobs)| {
            let turns = if *other == lane { usize::MAX } else { own.waiting + 1 };
            jobs.waiting.min(turns)
        });
        let ahead = (before.sum::<usize>() + 1).saturating_sub(free);
        let wait = pace::wait(ahead, pace);
        if wait > most { Err(Refused::Slow { waiting, wait, most }) } else { Ok(()) }
    }

    fn waiting(&self) -> usize {
        self.public.stats.waiting + self.arrivals.len()
    }

    /// Jobs of each lane that has any, with those that have just come.
    fn lanes(&self) -> BTreeMap<Lane, Jobs> {
        let mut lanes = self.public.jobs.clone();
        for answer in &self.arrivals {
            lanes.entry(answer.lane()).or_default().waiting += 1;
        }
        lanes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { running: 4, waiting: 1000, wait: Duration::from_secs(10) };

    /// An engine whose four places are taken by the first lane, with so many that wait, of which two begin in a second.
    fn busy(waiting: &[usize]) -> State {
        let jobs = |(lane, waiting): (usize, &usize)| {
            let running = if lane == 0 { 4 } else { 0 };
            (Lane(u32::try_from(lane).unwrap()), Jobs { running, waiting: *waiting })
        };
        let stats = Stats { running: 4, waiting: waiting.iter().sum(), ..Stats::default() };
        let jobs = waiting.iter().enumerate().map(jobs).collect();
        let public = Public { stats, jobs, is_pressed: true, pace: Some(2.0) };
        State { arrivals: Vec::new(), guided: Vec::new(), public, phase: Phase::Open }
    }

    fn wait(state: &State, lane: u32) -> Option<u64> {
        match state.admit(1, Lane(lane), &BOUNDS) {
            Ok(()) => None,
            Err(Refused::Slow { wait, most, .. }) => {
                assert_eq!(most, BOUNDS.wait);
                Some(wait.as_secs())
            }
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn who_would_wait_too_long_is_refused_at_once() {
        assert_eq!(wait(&busy(&[19]), 0), None);
        assert_eq!(wait(&busy(&[21]), 0), Some(11));
        let unknown =
            State { public: Public { pace: None, ..busy(&[500]).public }, ..busy(&[500]) };
        assert_eq!(wait(&unknown, 0), None, "nobody knows how long that takes");
    }

    #[test]
    fn a_request_of_many_jobs_does_not_wait_for_itself() {
        let mut state = busy(&[0]);
        state.public.is_pressed = false;
        state.public.stats.running = 3;
        assert_eq!(state.admit(800, Lane(1), &BOUNDS), Ok(()), "the first has a place");
        state.public.stats.running = 4;
        state.public.pace = Some(0.01);
        let refused = state.admit(2, Lane(1), &BOUNDS);
        assert!(matches!(refused, Err(Refused::Slow { .. })), "{refused:?}");
    }

    #[test]
    fn a_request_of_many_jobs_has_room_for_all_or_comes_alone() {
        let bounds = Bounds { waiting: 12, ..BOUNDS };
        let few = State { public: Public { pace: None, ..busy(&[2]).public }, ..busy(&[2]) };
        let admit = |jobs| few.admit(jobs, Lane(1), &bounds).is_ok();
        // Of sixteen places six are taken, and the last of nine finds eight taken by its lane and two free.
        assert_eq!([1, 8, 9, 10].map(admit), [true, true, true, false]);
        let none = State { public: Public::default(), ..busy(&[]) };
        assert_eq!(none.admit(100, Lane(1), &bounds), Ok(()), "it would never have room");
    }

    #[test]
    fn who_has_a_long_line_makes_nobody_else_wait() {
        let state = busy(&[500]);
        assert_eq!(wait(&state, 0), Some(250));
        assert_eq!(wait(&state, 1), None, "one of the other lane comes before it");
        // One after the other of each of three lanes.
        assert_eq!(wait(&busy(&[500, 4, 7]), 1), None);
        assert_eq!(wait(&busy(&[500, 6, 7]), 1), Some(10));
        assert_eq!(wait(&busy(&[0, 500]), 0), None);
    }

    #[test]
    fn free_places_are_no_wait_however_slow_it_was() {
        let mut state = busy(&[0]);
        state.public.is_pressed = false;
        state.public.pace = Some(0.01);
        assert_eq!(wait(&state, 0), Some(100));
        state.public.stats.running = 3;
        assert_eq!(wait(&state, 0), None);
        // Taken since the plan: it has the place, and the next one has none.
        state.public.stats.waiting = 1;
        state.public.jobs.insert(Lane(0), Jobs { running: 3, waiting: 1 });
        assert_eq!(wait(&state, 0), Some(100));
        state.public.stats.running = 2;
        assert_eq!(wait(&state, 0), None);
        state.public.is_pressed = true;
        assert!(wait(&state, 0).is_some(), "there is a reason why nobody has the places");
    }
}
