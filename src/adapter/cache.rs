//! The host cache: the [`Line`] under a lock, with threads that load and requests that wait.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{Instant as Alarm, timeout_at},
};

use super::{
    LoadError, NotLent,
    aside::aside,
    line::{
        Asked, Bounds, Line, Load, Orders, Owner, PATIENCE, Portions, Standing, Ticket, Waited,
        Want,
    },
    load::Source,
    stats::Histogram,
};
use crate::lora::Digest;

/// Lends what its source has, within the bounds of the settings.
pub(super) struct Cache<S: Source> {
    shared: Arc<Shared<S>>,
}

struct Shared<S: Source> {
    /// A std mutex: it is held for one transition, never across an await, a load, or the drop of a loan.
    state: Mutex<State<S>>,
    source: S,
    /// How long a request waits at most.
    time_out: Duration,
    /// Where loads end; leases are returned from threads that are not the runtime's.
    runtime: Handle,
}

struct State<S: Source> {
    line: Line<S::Loaded, oneshot::Sender<Lent<S>>>,
    load_seconds: Histogram,
}

/// What a waiting request is sent.
type Lent<S> = Result<Loan<S>, Arc<LoadError>>;

/// A loaded value and the claim on it. The value goes first when both are dropped.
pub(super) struct Loan<S: Source> {
    pub(super) value: Arc<S::Loaded>,
    pub(super) claim: Claim<S>,
}

/// Counts as one lease until it is dropped. Dropping takes the cache's lock.
pub(super) struct Claim<S: Source> {
    shared: Arc<Shared<S>>,
    want: Want,
}

impl<S: Source> Cache<S> {
    /// An empty cache. Its loads end on the Tokio runtime that this is called in; without one it panics.
    pub(super) fn new(source: S, bounds: Bounds, time_out: Duration) -> Self {
        let state = State { line: Line::new(bounds), load_seconds: Histogram::default() };
        let runtime = Handle::current();
        Self { shared: Arc::new(Shared { state: Mutex::new(state), source, time_out, runtime }) }
    }

    /// Lends what is wanted, loading it into the bytes it will take if need be.
    ///
    /// Dropping the future leaves the line.
    pub(super) async fn lease(&self, want: Want) -> Result<Loan<S>, NotLent> {
        let since = Instant::now();
        let (sender, receiver) = oneshot::channel();
        let asked = self.shared.with(|line| line.ask(want, sender, since));
        let (asked, orders) = asked?;
        let ticket = match asked {
            Asked::Lent(value) => {
                // Counted as lent: it is returned whatever happens.
                let loan = self.shared.loan(want, value);
                self.shared.carry_out(orders);
                return Ok(loan);
            }
            Asked::Waits(ticket) => ticket,
        };
        // Declared before the orders are carried out: whatever happens there, the ticket leaves.
        let waiting = Waiting { shared: Arc::clone(&self.shared), ticket, receiver };
        self.shared.carry_out(orders);
        waiting.answer(since).await
    }

    /// Gives its memory back as soon as it has no lease.
    pub(super) fn forget(&self, digest: Digest) {
        let orders = self.shared.with(|line| line.forget(digest, Instant::now()));
        self.shared.carry_out(orders);
    }

    /// A failed load answers for the next ones no longer: there is something new to load.
    pub(super) fn retry(&self, digest: Digest) {
        self.shared.with(|line| line.retry(digest));
    }

    /// Owners have these portions from now on.
    pub(super) fn divide(&self, portions: Portions) {
        let orders = self.shared.with(|line| line.divide(portions, Instant::now()));
        self.shared.carry_out(orders);
    }

    /// Whether it is in memory for this owner.
    pub(super) fn holds(&self, owner: Owner, digest: &Digest) -> bool {
        self.shared.with(|line| line.holds(owner, digest))
    }

    /// What is in memory, and what is waited for, the most wanted first.
    pub(super) fn census(&self, now: Instant) -> (Vec<Digest>, Vec<Digest>) {
        self.shared.with(|line| line.census(now))
    }

    /// Numbers for the operator.
    pub(super) fn stats(&self) -> (Standing, Histogram) {
        let state = self.shared.state.lock().expect(NO_PANIC);
        (state.line.standing(), state.load_seconds.clone())
    }
}

impl<S: Source> fmt::Debug for Cache<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cache").field(&self.shared.with(|line| line.standing())).finish()
    }
}

/// Why the lock is never poisoned.
const NO_PANIC: &str = "no transition of the line panics";

impl<S: Source> Shared<S> {
    fn with<T>(
        &self,
        transition: impl FnOnce(&mut Line<S::Loaded, oneshot::Sender<Lent<S>>>) -> T,
    ) -> T {
        transition(&mut self.state.lock().expect(NO_PANIC).line)
    }

    fn loan(self: &Arc<Self>, want: Want, value: Arc<S::Loaded>) -> Loan<S> {
        Loan { value, claim: Claim { shared: Arc::clone(self), want } }
    }

    /// Sends answers and begins loads.
    ///
    /// The lock must be free: an answer to somebody who has left is a loan that is dropped here.
    fn carry_out(self: &Arc<Self>, orders: Orders<S::Loaded, oneshot::Sender<Lent<S>>>) {
        let Orders { answers, dropped, loads } = orders;
        drop(dropped);
        for (waiter, want, answer) in answers {
            let lent = answer.map(|value| self.loan(want, value));
            // Nobody is there any more: the loan comes back with the error and ends here.
            drop(waiter.send(lent));
        }
        for load in loads {
            let Load { digest, bytes, evicted } = load;
            let loading = Loading { shared: Arc::clone(self), digest, bytes, ended: false };
            // Where no thread can be had, the closure is dropped, and with it the load ends.
            let started = aside(move || {
                drop(evicted);
                loading.run();
            });
            if let Err(error) = started {
                tracing::error!(%digest, %error, "no thread for loading an adapter");
            }
        }
    }
}

/// One load whose memory is reserved. However it ends, the line is told.
struct Loading<S: Source> {
    shared: Arc<Shared<S>>,
    digest: Digest,
    bytes: usize,
    ended: bool,
}

impl<S: Source> Loading<S> {
    fn run(mut self) {
        let began = Instant::now();
        let result = self.shared.source.load(self.digest, self.bytes);
        let took = began.elapsed();
        // Not on this thread: while it holds the line's lock nobody of higher priority should have to wait for it.
        let runtime = self.shared.runtime.clone();
        runtime.spawn(async move { self.end(result, Some(took)) });
    }

    fn end(&mut self, result: Result<S::Loaded, LoadError>, took: Option<Duration>) {
        self.ended = true;
        let digest = self.digest;
        if let Err(error) = &result {
            tracing::warn!(%digest, %error, "an adapter could not be loaded");
        }
        let now = Instant::now();
        let orders = {
            let mut state = self.shared.state.lock().expect(NO_PANIC);
            if let Some(took) = took {
                state.load_seconds.observe(took.as_secs_f64());
            }
            match result {
                Ok(value) => state.line.loaded(digest, value, now),
                Err(error) => state.line.failed(digest, Arc::new(error), now),
            }
        };
        self.shared.carry_out(orders);
    }
}

impl<S: Source> Drop for Loading<S> {
    fn drop(&mut self) {
        if !self.ended {
            self.end(Err(LoadError::BrokenOff), None);
        }
    }
}

impl<S: Source> Drop for Claim<S> {
    fn drop(&mut self) {
        let orders = self.shared.with(|line| line.returned(self.want, Instant::now()));
        self.shared.carry_out(orders);
    }
}

/// A request in the line, or with a load. Dropping it leaves.
struct Waiting<S: Source> {
    shared: Arc<Shared<S>>,
    ticket: Ticket,
    receiver: oneshot::Receiver<Lent<S>>,
}

impl<S: Source> Waiting<S> {
    async fn answer(mut self, since: Instant) -> Result<Loan<S>, NotLent> {
        let time_out = self.shared.time_out;
        if PATIENCE < time_out {
            if let Ok(lent) =
                timeout_at(Alarm::from_std(since + PATIENCE), &mut self.receiver).await
            {
                return granted(lent);
            }
            let orders = self.shared.with(|line| line.advance(Instant::now()));
            self.shared.carry_out(orders);
        }
        if let Ok(lent) = timeout_at(Alarm::from_std(since + time_out), &mut self.receiver).await {
            return granted(lent);
        }
        match self.leave() {
            Some(Waited::ForRoom) => Err(NotLent::TimedOut { waited: since.elapsed() }),
            Some(Waited::ForPortion(most)) => Err(NotLent::PortionInUse { most }),
            // The answer is on its way: it was decided before the time was up.
            None => granted((&mut self.receiver).await),
        }
    }

    /// What it waited for, where there was no answer yet.
    fn leave(&self) -> Option<Waited> {
        let (waited, orders) = self.shared.with(|line| line.leave(self.ticket, Instant::now()));
        self.shared.carry_out(orders);
        waited
    }
}

impl<S: Source> Drop for Waiting<S> {
    fn drop(&mut self) {
        self.leave();
    }
}

fn granted<S: Source>(
    lent: Result<Lent<S>, oneshot::error::RecvError>,
) -> Result<Loan<S>, NotLent> {
    lent.expect("a waiter is dropped only with its answer").map_err(NotLent::Failed)
}

#[cfg(test)]
mod tests;
