//! What an answer may look like: which tokens may come next, after each, as somebody sees it who knows what tokens mean.
//!
//! To find that out can take milliseconds, and a request can be made so that it does. So the engine's thread never does it:
//! [`Guides`] have threads of their own, which work while a step is computed. An answer whose guide is not done when its
//! logits are there stands back, and the others go on.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
};

use super::{inbox::Inbox, sequence::SequenceId};

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

/// The threads on which guides work. They end when this is dropped and what they had to do is done.
#[derive(Debug)]
pub(crate) struct Guides {
    tasks: mpsc::Sender<Task>,
}

impl Guides {
    /// Starts the threads: few, since they take time from those that compute. What they find goes to the inbox.
    pub(crate) fn start(inbox: &Arc<Inbox>) -> std::io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let (tasks, waiting) = mpsc::channel();
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..(cores / 4).max(1) {
            let (waiting, inbox) = (Arc::clone(&waiting), Arc::clone(inbox));
            thread::Builder::new().name("guide".to_owned()).spawn(move || {
                loop {
                    let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(task) = next else { return };
                    work(task, &inbox);
                }
            })?;
        }
        Ok(Self { tasks })
    }

    /// Asks what may come after `token`. The answer comes by the inbox, also where the guide panics.
    pub(crate) fn ask(&self, id: SequenceId, guide: Box<dyn Guide>, token: Option<u32>) {
        // The threads live as long as this.
        drop(self.tasks.send(Task::Ask(id, guide, token)));
    }

    /// Drops a guide, elsewhere.
    pub(crate) fn forget(&self, guide: Box<dyn Guide>) {
        drop(self.tasks.send(Task::Forget(guide)));
    }
}

fn work(task: Task, inbox: &Inbox) {
    let (id, mut guide, token) = match task {
        Task::Ask(id, guide, token) => (id, guide, token),
        Task::Forget(guide) => {
            // Not ours: whatever its drop does ends no thread.
            drop(catch_unwind(AssertUnwindSafe(|| drop(guide))));
            return;
        }
    };
    let found = catch_unwind(AssertUnwindSafe(|| guide.after(token)));
    let guidance = match found {
        Ok(Ok(allowed)) => Guidance::Told(guide, allowed),
        Ok(Err(Lost)) => Guidance::Lost,
        Err(_) => {
            tracing::error!("a guide panicked; its answer is given up");
            Guidance::Lost
        }
    };
    inbox.guided(Guided { id, guidance });
}
