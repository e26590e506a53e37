//! What the client itself costs.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::{runtime::Handle, sync::mpsc as events};

use super::measure::{Client, Spread, histogram, record};

/// How often a wake-up is tried.
const EVERY: Duration = Duration::from_millis(5);
/// Clock ticks of Linux's process times, a second.
const TICKS: f64 = 100.0;

/// Wakes a task of the run's own runtime again and again, as bytes that arrive do, and notes how long each wake-up took: so
/// long may bytes have waited before the client saw them.
#[derive(Debug)]
pub(super) struct Pulse {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<()>,
    waits: Arc<Mutex<Histogram<u64>>>,
    busy: Duration,
    cpu: Option<f64>,
    begun: Instant,
}

impl Pulse {
    /// On the runtime that it is called on.
    pub(super) fn start() -> std::io::Result<Self> {
        let waits = Arc::new(Mutex::new(histogram(3)));
        let (beat, mut beats) = events::channel::<Instant>(64);
        let noted = Arc::clone(&waits);
        tokio::spawn(async move {
            while let Some(sent) = beats.recv().await {
                let wait = sent.elapsed();
                record(&mut noted.lock().unwrap_or_else(PoisonError::into_inner), wait);
            }
        });
        let (stop, stopped) = mpsc::channel();
        let thread = thread::Builder::new().name("pulse".to_owned()).spawn(move || {
            while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                // A full channel means a client that stands still, which the beats in it will tell.
                let _ = beat.try_send(Instant::now());
            }
        })?;
        Ok(Self { stop, thread, waits, busy: busy(), cpu: cpu_seconds(), begun: Instant::now() })
    }

    /// What it came to, with how late requests were sent.
    pub(super) fn stop(self, lags: &Histogram<u64>) -> Client {
        let wall = self.begun.elapsed().as_secs_f64().max(1e-9);
        let _ = self.stop.send(());
        // It can only have panicked, which is no reason to lose a run.
        drop(self.thread.join());
        let threads = Handle::current().metrics().num_workers();
        let waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        Client {
            threads,
            busy: busy().saturating_sub(self.busy).as_secs_f64() / wall / threads.max(1) as f64,
            cpu_s: cpu_seconds().zip(self.cpu).map(|(now, then)| now - then),
            late_ms: Spread::of(lags),
            wake_ms: Spread::of(&waits),
        }
    }
}

/// How long the runtime's threads have been at work, all together.
fn busy() -> Duration {
    let metrics = Handle::current().metrics();
    (0..metrics.num_workers()).map(|worker| metrics.worker_total_busy_duration(worker)).sum()
}

/// Processor time of this process, where the system says it in a file: user and system time are fields 14 and 15, after a
/// name that may have spaces.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn wake_ups_are_noted() {
        let pulse = Pulse::start().unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        let client = pulse.stop(&histogram(3));
        assert_eq!(client.threads, 1);
        assert!(client.wake_ms.is_some_and(|spread| spread.count > 0 && spread.max > 0.0));
        assert_eq!(client.late_ms, None);
        assert!((0.0..=1.0).contains(&client.busy), "{}", client.busy);
    }
}
