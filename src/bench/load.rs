//! A run: requests are sent when they are due, or when one ends.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use hdrhistogram::Histogram;
use reqwest::RequestBuilder;
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, sleep_until},
};

use super::{
    arrivals::Arrivals,
    client::{self, Attempt, Clients},
    draw::{self, Drawer, Wish},
    error::BenchError,
    measure::{Ended, Outcome, Recorder, Run, Sample, histogram, record},
    plan::{Load, Plan, Warmup},
    pulse::Pulse,
};

/// Where a refusal does not say when to come back.
const RETRY: Duration = Duration::from_secs(1);
/// Nobody waits longer than this because a refusal says so.
const MOST_RETRY: Duration = Duration::from_mins(1);
/// Before the next request of a closed loop, after one for which there was no connection.
const BREATH: Duration = Duration::from_millis(100);
/// A server to which no connection could be made for so long is gone.
const GONE: Duration = Duration::from_secs(5);
/// And no sooner than after so many tries.
const GONE_TRIES: u32 = 8;
/// Adapters that are warmed at once.
const WARMED_AT_ONCE: usize = 8;
/// Requests before the measured ones are drawn from another seed than these.
const WARMUP_SEED: u64 = 0x7761_726d;

/// How a run goes, for whoever watches it.
#[derive(Debug)]
pub struct Live {
    begun: Mutex<Option<Instant>>,
    sent: AtomicU64,
    running: AtomicU64,
    done: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    parts: AtomicU64,
    ttft: Mutex<Histogram<u64>>,
}

/// A run at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    /// Since the first measured request could be sent; `None` before.
    pub elapsed: Option<Duration>,
    /// Requests that were sent.
    pub sent: u64,
    /// Of which so many are under way.
    pub running: u64,
    /// And so many were answered.
    pub done: u64,
    /// Were refused.
    pub refused: u64,
    /// Failed.
    pub failed: u64,
    /// Parts of answers.
    pub parts: u64,
    /// Median time to the first token, so far.
    pub ttft: Option<Duration>,
}

impl Default for Live {
    fn default() -> Self {
        Self {
            begun: Mutex::default(),
            sent: AtomicU64::default(),
            running: AtomicU64::default(),
            done: AtomicU64::default(),
            refused: AtomicU64::default(),
            failed: AtomicU64::default(),
            parts: AtomicU64::default(),
            ttft: Mutex::new(histogram(2)),
        }
    }
}

impl Live {
    /// How it goes now.
    pub fn snapshot(&self) -> Snapshot {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let ttft = locked(&self.ttft);
        Snapshot {
            elapsed: locked(&self.begun).map(|begun| begun.elapsed()),
            sent: of(&self.sent),
            running: of(&self.running),
            done: of(&self.done),
            refused: of(&self.refused),
            failed: of(&self.failed),
            parts: of(&self.parts),
            ttft: (!ttft.is_empty()).then(|| Duration::from_micros(ttft.value_at_quantile(0.5))),
        }
    }

    /// A new run begins.
    fn begin(&self, begun: Instant) {
        for count in [&self.sent, &self.done, &self.refused, &self.failed, &self.parts] {
            count.store(0, Ordering::Relaxed);
        }
        locked(&self.ttft).reset();
        *locked(&self.begun) = Some(begun);
    }

    fn note(&self, sample: &Sample) {
        let count = match sample.outcome {
            Outcome::Done => &self.done,
            Outcome::Refused { .. } => &self.refused,
            Outcome::Failed { .. } => &self.failed,
            Outcome::Unfinished => return,
        };
        count.fetch_add(1, Ordering::Relaxed);
        if let (true, Some(ttft)) = (sample.is_done(), sample.ttft()) {
            record(&mut locked(&self.ttft), ttft);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is noted is whole after every line, so that a task that panicked leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does what a plan says, until that is done or `stop` says true, and gives all that was noted until then.
pub async fn run(
    plan: Arc<Plan>,
    live: Arc<Live>,
    stop: watch::Receiver<bool>,
) -> Result<Run, BenchError> {
    plan.check()?;
    let clients = Clients::new(&plan).map_err(BenchError::Client)?;
    let (over, _) = watch::channel(None);
    let (spent, _) = watch::channel(false);
    let tenants = plan.tenants.len();
    let mut load = Running {
        drawer: Mutex::new(Drawer::new(&plan, plan.seed)?),
        left: AtomicU64::new(plan.requests.unwrap_or(u64::MAX)),
        recorder: Mutex::new(Recorder::new(Instant::now(), tenants)),
        unreachable: Mutex::default(),
        begun: Instant::now(),
        spent,
        over,
        plan,
        live,
        clients,
    };
    let stopped = |mut stop: watch::Receiver<bool>| async move {
        // A sender that is gone never stops a run.
        if stop.wait_for(|stop| *stop).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        warmed = load.warm_up() => warmed?,
        () = stopped(stop.clone()) => load.over.send_modify(|over| *over = Some(Ended::Interrupted)),
    }
    let pulse = Pulse::start().map_err(BenchError::System)?;
    load.begin();
    let load = Arc::new(load);
    let whole = async {
        match load.plan.load {
            Load::Closed { concurrency } => load.closed(concurrency).await,
            Load::Open { .. } | Load::Replay { .. } => load.paced().await,
        }
    };
    tokio::pin!(whole);
    tokio::select! {
        () = &mut whole => {}
        () = stopped(stop) => {
            load.end(Ended::Interrupted);
            whole.await;
        }
    }
    Ok(load.noted(pulse))
}

/// A run under way.
struct Running {
    plan: Arc<Plan>,
    clients: Clients,
    live: Arc<Live>,
    begun: Instant,
    drawer: Mutex<Drawer>,
    /// Requests that may still be sent.
    left: AtomicU64,
    /// Whether none may.
    spent: watch::Sender<bool>,
    recorder: Mutex<Recorder>,
    /// Since when, and how often, there has been no connection.
    unreachable: Mutex<Option<(Instant, u32)>>,
    /// Why nothing more is done, once that is so.
    over: watch::Sender<Option<Ended>>,
}

impl Running {
    fn begin(&mut self) {
        self.begun = Instant::now();
        locked(&self.recorder).begin(self.begun);
        self.live.begin(self.begun);
    }

    fn end(&self, why: Ended) {
        self.over.send_if_modified(|over| {
            let first = over.is_none();
            over.get_or_insert(why);
            first
        });
    }

    fn is_over(&self) -> bool {
        self.over.borrow().is_some()
    }

    /// Until nothing more is to be done.
    async fn ended(&self) {
        // The sender is ours, so that it is there as long as we are.
        drop(self.over.subscribe().wait_for(Option::is_some).await);
    }

    /// What goes before the measured requests; a failure here is the plan's or the server's, and ends the run.
    async fn warm_up(&self) -> Result<(), BenchError> {
        let mut drawer = Drawer::new(&self.plan, self.plan.seed ^ WARMUP_SEED)?;
        match self.plan.warmup {
            Warmup::Requests(count) => {
                let is_replay = matches!(self.plan.load, Load::Replay { .. });
                for _ in 0..count {
                    // What a trace asks may be much smaller than what else would be drawn, and be made for a small context.
                    let replayed = drawer.replay().map(|(_, wish)| wish);
                    let wish = if is_replay { replayed } else { Some(drawer.next()) };
                    let Some(wish) = wish else { break };
                    self.first(wish).await?;
                }
            }
            Warmup::Each => {
                let mut wishes = Vec::new();
                for (place, tenant) in self.plan.tenants.iter().enumerate() {
                    let each = tenant.adapters.iter();
                    wishes.extend(each.map(|adapter| drawer.first_of(place, adapter.as_ref())));
                }
                let firsts = stream::iter(wishes).map(|wish| self.first(wish));
                let mut firsts = firsts.buffer_unordered(WARMED_AT_ONCE);
                while let Some(warmed) = firsts.next().await {
                    warmed?;
                }
            }
        }
        Ok(())
    }

    async fn first(&self, wish: Wish) -> Result<(), BenchError> {
        let request = client::request(&self.clients, &self.plan, &wish);
        let attempt = client::attempt(request, &self.clients, self.plan.timeout, |_| {}).await;
        let name = wish.adapter.as_ref().map(|adapter| &adapter.name);
        match attempt.outcome {
            Outcome::Failed { kind, why } => {
                let whom = name.map_or(self.plan.target.model.as_str(), |name| name);
                Err(BenchError::Warmup { whom: whom.to_owned(), why: format!("{kind}: {why}") })
            }
            Outcome::Done => {
                locked(&self.recorder).warmed(wish.tenant, name);
                Ok(())
            }
            Outcome::Refused { .. } | Outcome::Unfinished => Ok(()),
        }
    }

    /// Each tenant's places send one request after the other.
    async fn closed(self: &Arc<Self>, concurrency: usize) {
        let mut places = JoinSet::new();
        // More have nothing to send.
        let most = self.plan.requests.and_then(|most| usize::try_from(most).ok());
        let concurrency = concurrency.min(most.unwrap_or(usize::MAX));
        for (tenant, desks) in self.plan.desks(concurrency).into_iter().enumerate() {
            for _ in 0..desks {
                let load = Arc::clone(self);
                places.spawn(async move { load.place(tenant).await });
            }
        }
        while places.join_next().await.is_some() {}
    }

    async fn place(&self, tenant: usize) {
        let in_time = || self.plan.duration.is_none_or(|most| self.begun.elapsed() < most);
        while !self.is_over() && in_time() && self.may_send() {
            let wish = locked(&self.drawer).next_of(tenant);
            let request = client::request(&self.clients, &self.plan, &wish);
            if let Some(rest) = self.ask(wish, request, Instant::now()).await {
                self.rest(rest).await;
            }
        }
    }

    /// Waits, but not when there is nothing more to be sent after it.
    async fn rest(&self, rest: Duration) {
        let left = self.plan.duration.map(|most| most.saturating_sub(self.begun.elapsed()));
        tokio::select! {
            () = sleep(left.map_or(rest, |left| left.min(rest))) => {}
            () = self.nothing_left() => {}
            () = self.ended() => {}
        }
    }

    /// Until no request may be sent any more.
    async fn nothing_left(&self) {
        // The sender is ours, as in `ended`.
        drop(self.spent.subscribe().wait_for(|spent| *spent).await);
    }

    fn may_send(&self) -> bool {
        let one_less = |left: u64| left.checked_sub(1);
        let before = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
        if before == Ok(1) {
            self.spent.send_replace(true);
        }
        before.is_ok()
    }

    /// Sends requests when they are due, whatever has become of those before.
    async fn paced(self: &Arc<Self>) {
        let mut arrivals = match self.plan.load {
            Load::Open { rate, spacing } => {
                let over = self.plan.duration.unwrap_or_default();
                Some(Arrivals::new(rate, over, spacing, draw::arrivals(self.plan.seed)))
            }
            Load::Closed { .. } | Load::Replay { .. } => None,
        };
        let mut next = || match &mut arrivals {
            Some(arrivals) => Some((arrivals.next()?, locked(&self.drawer).next())),
            None => locked(&self.drawer).replay(),
        };
        let room = Arc::new(Semaphore::new(self.plan.most_at_once));
        let mut requests = JoinSet::new();
        // All that can be done before it is due is done before.
        while let Some((due, wish)) = next() {
            if self.plan.duration.is_some_and(|most| due > most) || !self.may_send() {
                break;
            }
            let request = client::request(&self.clients, &self.plan, &wish);
            let Some(due) = self.begun.checked_add(due) else { break };
            let wait = async {
                sleep_until(due.into()).await;
                Arc::clone(&room).acquire_owned().await
            };
            let room = tokio::select! {
                room = wait => room,
                () = self.ended() => break,
            };
            let load = Arc::clone(self);
            requests.spawn(async move {
                load.ask(wish, request, due).await;
                drop(room);
            });
            while requests.try_join_next().is_some() {}
        }
        while requests.join_next().await.is_some() {}
    }

    /// One request, from when it is due to its end. Gives how long whoever sent it should wait before the next one.
    async fn ask(&self, wish: Wish, request: RequestBuilder, due: Instant) -> Option<Duration> {
        let name = wish.adapter.as_ref().map(|adapter| Arc::clone(&adapter.name));
        let cold = locked(&self.recorder).is_cold(wish.tenant, name.as_ref());
        self.live.sent.fetch_add(1, Ordering::Relaxed);
        self.live.running.fetch_add(1, Ordering::Relaxed);
        let sent = Instant::now();
        let heard = |before: usize| {
            self.live.parts.fetch_add(1, Ordering::Relaxed);
            if before == 0 && cold {
                locked(&self.recorder).warmed(wish.tenant, name.as_ref());
            }
        };
        let (attempt, attempts) = self.attempts(request, heard).await;
        let since = |time: &Instant| time.saturating_duration_since(self.begun);
        let heard = attempt.parts.len() as u64;
        let sample = Sample {
            tenant: wish.tenant,
            adapter: name,
            cold,
            due: since(&due),
            sent: since(&sent),
            first: attempt.parts.first().map(since),
            last: attempt.parts.last().map(since),
            end: since(&attempt.end),
            prompt_tokens: attempt.usage.map_or(0, |usage| usage.prompt_tokens),
            output_tokens: attempt.usage.map_or(heard, |usage| usage.completion_tokens),
            counted: attempt.usage.is_some(),
            asked_words: wish.words,
            asked_tokens: wish.output,
            attempts,
            outcome: attempt.outcome,
        };
        self.live.running.fetch_sub(1, Ordering::Relaxed);
        self.live.note(&sample);
        let rest = match (self.reached(&sample.outcome), &sample.outcome) {
            (Reached::No, _) => Some(BREATH),
            // Who asks again at once asks thousands of times a second, and takes the time of those that are served.
            (Reached::Yes, Outcome::Refused { .. }) => Some(pause(attempt.retry_after)),
            (Reached::Yes, _) => None,
        };
        locked(&self.recorder).note(sample, &attempt.parts);
        rest
    }

    /// Tries until it is not refused, or often enough. Gives how often it was sent, too.
    async fn attempts(&self, request: RequestBuilder, heard: impl Fn(usize)) -> (Attempt, u32) {
        let (mut tries, mut sends) = (0, 0);
        loop {
            tries += 1;
            // Bodies are bytes, which can always be sent again.
            let Some(this) = request.try_clone() else { return (Attempt::unfinished(), sends + 1) };
            let attempt = client::attempt(this, &self.clients, self.plan.timeout, &heard);
            let attempt = tokio::select! {
                attempt = attempt => attempt,
                () = self.ended() => return (Attempt::unfinished(), sends + 1),
            };
            sends += attempt.sends;
            if !matches!(attempt.outcome, Outcome::Refused { .. }) || tries > self.plan.retries {
                return (attempt, sends);
            }
            tokio::select! {
                () = sleep(pause(attempt.retry_after)) => {}
                () = self.ended() => return (attempt, sends),
            }
        }
    }

    /// Ends the run where there has been no server for a while.
    fn reached(&self, outcome: &Outcome) -> Reached {
        let is_unreachable =
            matches!(outcome, Outcome::Failed { kind, .. } if kind == Outcome::UNREACHABLE);
        let mut unreachable = locked(&self.unreachable);
        if !is_unreachable {
            *unreachable = None;
            return Reached::Yes;
        }
        let (since, tries) = unreachable.get_or_insert((Instant::now(), 0));
        *tries += 1;
        if *tries >= GONE_TRIES && since.elapsed() >= GONE {
            self.end(Ended::ServerGone);
        }
        Reached::No
    }

    /// What was noted.
    fn noted(&self, pulse: Pulse) -> Run {
        let empty = Recorder::new(self.begun, 0);
        let recorder = std::mem::replace(&mut *locked(&self.recorder), empty);
        let last = recorder.samples.iter().map(|sample| sample.end).max();
        let client = pulse.stop(&recorder.notes.late);
        Run {
            samples: recorder.samples,
            wall: last.unwrap_or_else(|| self.begun.elapsed()),
            ended: self.over.borrow().unwrap_or(Ended::Complete),
            client,
            notes: recorder.notes,
        }
    }
}

/// How long to wait after a refusal.
fn pause(retry_after: Option<Duration>) -> Duration {
    retry_after.unwrap_or(RETRY).min(MOST_RETRY)
}

/// Whether there was a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reached {
    Yes,
    No,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_how_long_to_wait_within_reason() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(pause(None), Duration::from_secs(1));
        assert_eq!(pause(seconds(0)), Duration::ZERO);
        assert_eq!(pause(seconds(7)), Duration::from_secs(7));
        assert_eq!(pause(seconds(86_400)), Duration::from_mins(1));
    }
}
