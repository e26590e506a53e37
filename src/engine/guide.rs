//! What an answer may look like: which tokens may come next, after each, as somebody sees it who knows what tokens mean.
//!
//! To find that out can take milliseconds, and a request can be made so that it does. So the engine's thread never does it:
//! [`Guides`] have threads of their own, which work while a step is computed. An answer whose guide is not done when its
//! logits are there stands back, and the others go on.

use std::{
    collections::VecDeque,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use super::{inbox::Inbox, job::Lane, sequence::SequenceId};

/// Guides one answer.
pub trait Guide: Send + fmt::Debug {
    /// What may come after `token`, or first of all where it is `None`. Asked with each token of the answer, in order; not again
    /// after an error, or after [`Allowed::Nothing`].
    fn after(&mut self, token: Option<u32>) -> Result<Allowed, Lost>;
}

/// The guide cannot say what may come: finding out took too much work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what the answer must look like takes too much work to follow")]
pub struct Lost;

/// What may come next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// Nothing: the answer is complete.
    Nothing,
    /// One of these tokens.
    Tokens(TokenSet),
}

/// Some of the vocabulary's tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenSet {
    /// Bit `id % 32` of word `id / 32` is set where the token is in it; what lies beyond the last word is not.
    pub words: Vec<u32>,
    /// Whether the job's stop tokens are in it, whatever the bits say: the answer may end here.
    pub may_end: bool,
}

impl TokenSet {
    /// Whether the set's bits have the token.
    pub(crate) fn has(&self, id: usize) -> bool {
        self.words.get(id / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }
}

/// How far an answer's guide is.
#[derive(Debug)]
pub(crate) enum Guidance {
    /// There is none.
    Free,
    /// It is finding out what may come next.
    Asked,
    /// It has found out.
    Told(Box<dyn Guide>, Allowed),
    /// It cannot.
    Lost,
}

/// A guide that is back from its work.
#[derive(Debug)]
pub(crate) struct Guided {
    /// Whose.
    pub(crate) id: SequenceId,
    /// In which lane.
    pub(crate) lane: Lane,
    /// What it has found.
    pub(crate) guidance: Guidance,
}

/// What the threads do.
enum Task {
    /// Ask a guide what may come after a token, or first.
    Ask(SequenceId, Box<dyn Guide>, Option<u32>),
    /// Forget a guide, which may hold much.
    Forget(Box<dyn Guide>),
}

/// What the threads have still to do: of each lane in the order it came, of the lanes by turns, so that one whose guides
/// take long delays its own.
struct Turns<T> {
    /// Those that want something, in the order of their next turns.
    lanes: VecDeque<(Lane, VecDeque<T>)>,
    /// No more will come.
    is_closed: bool,
}

impl<T> Turns<T> {
    fn new() -> Self {
        Self { lanes: VecDeque::new(), is_closed: false }
    }

    fn add(&mut self, lane: Lane, task: T) {
        match self.lanes.iter_mut().find(|(other, _)| *other == lane) {
            Some((_, tasks)) => tasks.push_back(task),
            None => self.lanes.push_back((lane, [task].into())),
        }
    }

    fn next(&mut self) -> Option<(Lane, T)> {
        let (lane, mut tasks) = self.lanes.pop_front()?;
        let task = tasks.pop_front()?;
        if !tasks.is_empty() {
            self.lanes.push_back((lane, tasks));
        }
        Some((lane, task))
    }
}

/// Where the threads find what they have to do.
struct Line {
    turns: Mutex<Turns<Task>>,
    changed: Condvar,
}

impl Line {
    fn turns(&self) -> MutexGuard<'_, Turns<Task>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, lane: Lane, task: Task) {
        self.turns().add(lane, task);
        self.changed.notify_one();
    }

    /// The next task, once there is one; none when no more will come.
    fn next(&self) -> Option<(Lane, Task)> {
        let mut turns = self.turns();
        loop {
            if let Some(task) = turns.next() {
                return Some(task);
            }
            if turns.is_closed {
                return None;
            }
            turns = self.changed.wait(turns).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The threads on which guides work. They end when this is dropped and what they had to do is done.
pub(crate) struct Guides {
    line: Arc<Line>,
}

impl fmt::Debug for Guides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guides").finish_non_exhaustive()
    }
}

impl Guides {
    /// Starts the threads: few, since they take time from those that compute. What they find goes to the inbox.
    pub(crate) fn start(inbox: &Arc<Inbox>) -> std::io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let line = Line { turns: Mutex::new(Turns::new()), changed: Condvar::new() };
        let guides = Self { line: Arc::new(line) };
        for _ in 0..(cores / 4).max(1) {
            let (line, inbox) = (Arc::clone(&guides.line), Arc::clone(inbox));
            thread::Builder::new().name("guide".to_owned()).spawn(move || {
                while let Some((lane, task)) = line.next() {
                    work(lane, task, &inbox);
                }
            })?;
        }
        Ok(guides)
    }

    /// Asks what may come after `token`. The answer comes by the inbox, also where the guide panics.
    pub(crate) fn ask(
        &self,
        (id, lane): (SequenceId, Lane),
        guide: Box<dyn Guide>,
        token: Option<u32>,
    ) {
        self.line.add(lane, Task::Ask(id, guide, token));
    }

    /// Drops a guide, elsewhere.
    pub(crate) fn forget(&self, lane: Lane, guide: Box<dyn Guide>) {
        self.line.add(lane, Task::Forget(guide));
    }
}

impl Drop for Guides {
    fn drop(&mut self) {
        self.line.turns().is_closed = true;
        self.line.changed.notify_all();
    }
}

fn work(lane: Lane, task: Task, inbox: &Inbox) {
    let (id, mut guide, token) = match task {
        Task::Ask(id, guide, token) => (id, guide, token),
        Task::Forget(guide) => return forget(guide),
    };
    let found = catch_unwind(AssertUnwindSafe(|| guide.after(token)));
    let guidance = match found {
        Ok(Ok(allowed)) => Guidance::Told(guide, allowed),
        lost => {
            if lost.is_err() {
                tracing::error!("a guide panicked; its answer is given up");
            }
            forget(guide);
            Guidance::Lost
        }
    };
    inbox.guided(Guided { id, lane, guidance });
}

/// It is not ours: whatever its drop does ends no thread.
fn forget(guide: Box<dyn Guide>) {
    drop(catch_unwind(AssertUnwindSafe(|| drop(guide))));
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// All is done once, a lane's own in the order it came, and between two of a lane's one of each other that waits.
        #[test]
        fn lanes_take_turns(tasks in prop::collection::vec(0_u32..5, 0..60)) {
            let mut turns = Turns::new();
            for (number, lane) in tasks.iter().enumerate() {
                turns.add(Lane(*lane), number);
            }
            let mut left: HashMap<u32, Vec<usize>> = HashMap::new();
            for (number, lane) in tasks.iter().enumerate() {
                left.entry(*lane).or_default().push(number);
            }
            let mut order = Vec::new();
            while let Some((Lane(lane), number)) = turns.next() {
                prop_assert_eq!(left.get_mut(&lane).unwrap().remove(0), number);
                order.push(lane);
            }
            prop_assert_eq!(order.len(), tasks.len());
            for lane in 0..5 {
                let at: Vec<_> = (0..order.len()).filter(|at| order[*at] == lane).collect();
                for between in at.windows(2) {
                    for other in (0..5).filter(|other| *other != lane) {
                        let met = order[between[0] + 1..between[1]].iter().filter(|met| **met == other).count();
                        let waits = order[between[1]..].contains(&other);
                        prop_assert!(met <= 1 && (met == 1 || !waits), "{order:?}");
                    }
                }
            }
        }
    }
}
