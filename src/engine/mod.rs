//! Token ids -> token ids: continuous batching over one network, through any mix of adapters.
//!
//! [`Engine`] is a handle, the `worker` thread owns network, KV pages and slots outright. A step of it:
//!
//! 1. `inbox`: take what was submitted; drop whose reader has left or whose deadline has passed.
//! 2. `scheduler`: decide which rows of which sequences are computed; a value, `Plan`. `draft`: guess what answers will say
//!    next, and compute that too where it is likely enough.
//! 3. `step`: lay the rows out by adapter, and compute.
//! 4. `answer`, `sampler`, `pooling`: draw a token per sequence that is up to date, or add up what is to be a vector; commit; tell the
//!    readers.
//!
//! Where an answer must have a form, a `guide` says after each token which may be next, on threads of its own while the next
//! step is computed.
//!
//! Absences: no tenant, no name, no file, no string. The scheduler knows no tensor, no thread and no clock. Fairness
//! comes in as an opaque [`Lane`], whose tokens `counters` count. No reader can stop a step: each job's channel holds all it can ever produce.

mod answer;
mod counters;
mod draft;
mod guide;
mod inbox;
mod job;
mod pace;
mod pages;
mod pooling;
mod prefix;
mod rng;
mod sampler;
mod scheduler;
mod sequence;
mod slots;
mod stats;
mod step;
mod stream;
mod waiting;
mod worker;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

use std::{
    fmt, mem,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::sync::watch;

#[cfg(feature = "cuda")]
pub(crate) use self::scheduler::SCORED_ROWS;
use self::{
    answer::Answer,
    guide::Guides,
    inbox::{Bounds, Inbox, Phase},
    step::{Forward, Network},
    worker::Worker,
};
pub use self::{
    guide::{Allowed, Guide, Lost, TokenSet},
    job::{Event, Failure, Finish, Job, Lane, Logprob, Pooling, Refused, Salt, Sampling, Scope},
    stats::{Ends, Histogram, Stats},
    stream::TokenStream,
};
pub use crate::model::PAGE;
use crate::model::{KvType, Llama};

/// How large the engine is. Each number is at least 1; 0 is taken as 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// KV pages, of [`PAGE`] positions each.
    pub pages: usize,
    /// Most positions of one sequence; no more than the network was made for, or than all pages hold, are allowed.
    pub context: usize,
    /// Most rows of one step. A step takes longer with each row, and all answers wait for it.
    pub step_tokens: usize,
    /// Most sequences computed side by side; no more than `step_tokens` are.
    pub max_running: usize,
    /// Most jobs in the queue while `max_running` run, that is, most jobs beyond so many; the next one is refused. A lane has
    /// at most seven eighths of all.
    pub max_waiting: usize,
    /// How long a job may have to wait, by the pace of the last seconds and in turn with other lanes; one that would wait
    /// longer is refused.
    pub max_wait: Duration,
    /// Most different adapters among the running sequences.
    pub slots: usize,
    /// Whether computed prefixes are kept for others, in pages that nobody needs; and what answers said, for guesses.
    pub keep_prefixes: bool,
    /// Most tokens of an answer that are guessed in a step, 0 for none: they are computed beside its next one, and drawn if they are
    /// right.
    pub guesses: usize,
}

impl Settings {
    /// The same in numbers that make sense together.
    fn sound(self) -> Self {
        let step_tokens = self.step_tokens.max(1);
        Self {
            pages: self.pages.max(1),
            context: self.context.max(1),
            step_tokens,
            // Each running sequence may decode, so that none of them waits for rows.
            max_running: self.max_running.clamp(1, step_tokens),
            max_waiting: self.max_waiting.max(1),
            max_wait: self.max_wait,
            slots: self.slots.max(1),
            keep_prefixes: self.keep_prefixes,
            guesses: self.guesses,
        }
    }
}

/// A handle on the engine. The engine ends with the last one.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

/// What all handles share. Dropping it stops the thread and waits for it, at most one step.
struct Shared {
    inbox: Arc<Inbox>,
    vocab: usize,
    hidden: usize,
    context: usize,
    keep_prefixes: bool,
    /// Closed when the thread has ended.
    alive: watch::Receiver<()>,
    /// Taken in `drop`.
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts the engine's thread with its own KV memory, of type `kv`.
    pub fn start(
        model: Arc<Llama>,
        kv: KvType,
        settings: Settings,
    ) -> Result<Self, candle_core::Error> {
        let settings = settings.sound();
        Self::over(Network::new(model, kv, settings.pages)?, settings)
    }

    /// Starts the engine's thread on any network with memory for `settings.pages`.
    pub(crate) fn over(
        network: impl Forward,
        settings: Settings,
    ) -> Result<Self, candle_core::Error> {
        let settings = settings.sound();
        let Settings { max_running: running, max_waiting: waiting, max_wait: wait, .. } = settings;
        let inbox = Arc::new(Inbox::new(Bounds { running, waiting, wait }));
        let (vocab, hidden, context) = (network.vocab(), network.hidden(), network.context());
        let (sender, alive) = watch::channel(());
        let guides = Guides::start(&inbox)?;
        let worker = Worker::new(network, &settings, (Arc::clone(&inbox), guides), sender);
        let thread =
            thread::Builder::new().name("engine".to_owned()).spawn(move || worker.run())?;
        let context = context.min(settings.context).min(settings.pages.saturating_mul(PAGE));
        let thread = Some(thread);
        let keep_prefixes = settings.keep_prefixes;
        let shared = Shared { inbox, vocab, hidden, context, keep_prefixes, alive, thread };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Puts a job in line. Never waits.
    pub fn submit(&self, job: Job) -> Result<TokenStream, Refused> {
        let (answer, stream) = self.begin(job, Instant::now())?;
        self.shared.inbox.put(vec![answer])?;
        Ok(stream)
    }

    /// Puts the jobs of one request in line, which are of one lane: all of them, or none. Never waits.
    pub fn submit_all(&self, jobs: Vec<Job>) -> Result<Vec<TokenStream>, Refused> {
        let now = Instant::now();
        let begun: Result<Vec<_>, _> = jobs.into_iter().map(|job| self.begin(job, now)).collect();
        let (answers, streams) = begun?.into_iter().unzip();
        self.shared.inbox.put(answers)?;
        Ok(streams)
    }

    fn begin(&self, job: Job, now: Instant) -> Result<(Answer, TokenStream), Refused> {
        self.check(&job.prompt, job.max_tokens)?;
        let (mut answer, stream) = Answer::new(job, now);
        if self.shared.keep_prefixes {
            answer.name_pages();
        }
        Ok((answer, stream))
    }

    /// Refuses what no engine of this network and size could answer: a bad prompt, or one that with so many more tokens is too long.
    pub fn check(&self, prompt: &[u32], max_tokens: usize) -> Result<(), Refused> {
        let Shared { vocab, context, .. } = *self.shared;
        let known = |id: &u32| usize::try_from(*id).is_ok_and(|id| id < vocab);
        if prompt.is_empty() || !prompt.iter().all(known) {
            return Err(Refused::BadPrompt { vocab });
        }
        let tokens = prompt.len().saturating_add(max_tokens);
        if tokens > context {
            return Err(Refused::TooLong { tokens, context });
        }
        Ok(())
    }

    /// Numbers in the vector of a pooled prompt.
    pub fn hidden(&self) -> usize {
        self.shared.hidden
    }

    /// The numbers after the latest step. Whoever has seen a job's end finds it counted.
    pub fn stats(&self) -> Stats {
        self.shared.inbox.stats()
    }

    /// Most tokens of one sequence, prompt and answer together: what the network allows and the KV pages hold.
    pub fn context(&self) -> usize {
        self.shared.context
    }

    /// Takes no new jobs; those taken are finished.
    pub fn stop(&self) {
        self.shared.inbox.advance(Phase::Draining);
    }

    /// Takes no new jobs, and fails those taken with [`Failure::Stopping`] after the step that is being computed.
    pub fn stop_now(&self) {
        self.shared.inbox.advance(Phase::Aborting);
    }

    /// Waits until the engine has ended, which it does after [`Engine::stop`] or [`Engine::stop_now`].
    pub async fn stopped(&self) {
        let mut alive = self.shared.alive.clone();
        // Nothing is ever sent: only the end ends this.
        while alive.changed().await.is_ok() {}
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("context", &self.shared.context).finish_non_exhaustive()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.inbox.advance(Phase::Aborting);
        if let Some(thread) = mem::take(&mut self.thread)
            && thread.join().is_err()
        {
            tracing::error!("the engine's thread had panicked");
        }
    }
}
