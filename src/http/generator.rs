//! What this module asks of the engine.

use std::fmt;

use crate::engine::{Engine, Job, Refused, Stats, TokenStream};

/// A source of tokens. A trait so that tests can answer from a script, failures included.
pub(super) trait Generator: fmt::Debug + Send + Sync + 'static {
    /// Puts the jobs of one request in line: all of them, or none. Never waits.
    fn submit_all(&self, jobs: Vec<Job>) -> Result<Vec<TokenStream>, Refused>;

    /// Puts a job in line.
    fn submit(&self, job: Job) -> Result<TokenStream, Refused> {
        let mut streams = self.submit_all(vec![job])?;
        Ok(streams.pop().expect("one for each job"))
    }

    /// Refuses what could never be answered.
    fn check(&self, prompt: &[u32], max_tokens: usize) -> Result<(), Refused>;

    /// Numbers in the vector of a prompt.
    fn hidden(&self) -> usize;

    /// Most tokens of one sequence, prompt and answer together.
    fn context(&self) -> usize;

    /// How it is doing.
    fn stats(&self) -> Stats;

    /// Fails the jobs it has with [`Failure::Stopping`](crate::engine::Failure::Stopping), and takes no more.
    fn stop_now(&self);
}

impl Generator for Engine {
    fn submit_all(&self, jobs: Vec<Job>) -> Result<Vec<TokenStream>, Refused> {
        Self::submit_all(self, jobs)
    }

    fn check(&self, prompt: &[u32], max_tokens: usize) -> Result<(), Refused> {
        Self::check(self, prompt, max_tokens)
    }

    fn hidden(&self) -> usize {
        Self::hidden(self)
    }

    fn context(&self) -> usize {
        Self::context(self)
    }

    fn stats(&self) -> Stats {
        Self::stats(self)
    }

    fn stop_now(&self) {
        Self::stop_now(self);
    }
}
