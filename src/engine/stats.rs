//! What the engine counts.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::job::{Failure, Finish};
use crate::lora::Digest;

/// Upper bounds in seconds: from a step of a small model to a long queue.
const SECONDS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
];

/// How often durations fell between fixed bounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Upper bounds in seconds, inclusive, ascending.
    pub bounds: &'static [f64],
    /// Observations up to each bound and above the one before; the last, beyond `bounds`, is all the rest.
    pub counts: Vec<u64>,
    /// All observations added up, in seconds.
    pub sum: f64,
}

impl Histogram {
    /// Counts one observation.
    pub(crate) fn record(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        self.counts[bucket] += 1;
        self.sum += seconds;
    }

    /// How many observations there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self { bounds: &SECONDS, counts: vec![0; SECONDS.len() + 1], sum: 0.0 }
    }
}

/// Jobs by the reason they ended for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// [`Finish::Stop`].
    pub stop: u64,
    /// [`Finish::Length`].
    pub length: u64,
    /// Nobody listened any more.
    pub cancelled: u64,
    /// [`Failure::Deadline`].
    pub deadline: u64,
    /// [`Failure::NotANumber`].
    pub not_a_number: u64,
    /// [`Failure::Guide`].
    pub guide: u64,
    /// [`Failure::Step`].
    pub step: u64,
    /// [`Failure::Stopping`].
    pub stopping: u64,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Finished(Finish),
    Failed(Failure),
    Cancelled,
}

impl Ends {
    /// Counts one end.
    pub(crate) fn record(&mut self, end: End) {
        let count = match end {
            End::Finished(Finish::Stop) => &mut self.stop,
            End::Finished(Finish::Length) => &mut self.length,
            End::Failed(Failure::Deadline) => &mut self.deadline,
            End::Failed(Failure::NotANumber) => &mut self.not_a_number,
            End::Failed(Failure::Guide) => &mut self.guide,
            End::Failed(Failure::Step) => &mut self.step,
            End::Failed(Failure::Stopping) => &mut self.stopping,
            End::Cancelled => &mut self.cancelled,
        };
        *count += 1;
    }

    /// All ends.
    pub fn total(&self) -> u64 {
        let Self { stop, length, cancelled, deadline, not_a_number, guide, step, stopping } = self;
        stop + length + cancelled + deadline + not_a_number + guide + step + stopping
    }
}

/// The engine after its latest step. Gauges are as they were then, the rest counts from the start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Gauge: sequences that hold pages and take rows.
    pub running: usize,
    /// Gauge: jobs in the queue, among them those preempted.
    pub waiting: usize,
    /// Gauge: all KV pages.
    pub pages_total: usize,
    /// Gauge: KV pages nobody owns.
    pub pages_free: usize,
    /// Gauge: those of them that hold prefixes for others to use.
    pub pages_idle: usize,
    /// Gauge: different adapters among the running sequences.
    pub adapters_running: usize,
    /// Gauge: the adapters that are on the device, where one computes.
    pub on_device: Arc<BTreeSet<Digest>>,
    /// Steps computed.
    pub steps: u64,
    /// Rows of all steps.
    pub step_rows_total: u64,
    /// Most rows a step had.
    pub max_rows: usize,
    /// Steps with at least 8 rows of at least 4 adapters, prompts and answers beside each other.
    pub mixed_steps: u64,
    /// Tokens of prompts that were taken in to their end, each counted once.
    pub prompt_tokens: u64,
    /// Tokens of prompts that were not computed, because their keys and values were at hand.
    pub cached_tokens: u64,
    /// Tokens drawn, without stop tokens.
    pub generated_tokens: u64,
    /// Tokens that were guessed, and computed beside others.
    pub guessed_tokens: u64,
    /// Those of them that were drawn then.
    pub foreseen_tokens: u64,
    /// How often a sequence lost its pages to an older one.
    pub preemptions: u64,
    /// How often the engine gave up all it had and began anew, because it had panicked.
    pub restarts: u64,
    /// Jobs that ended, by reason.
    pub ends: Ends,
    /// From being submitted to the first row computed.
    pub queue_seconds: Histogram,
    /// From the first row to the end of the prompt.
    pub prefill_seconds: Histogram,
    /// From the end of the prompt to the end of the answer, finished ones only.
    pub decode_seconds: Histogram,
    /// From planning a step to having its tokens.
    pub step_seconds: Histogram,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_observation_falls_under_the_first_bound_that_holds_it() {
        let mut histogram = Histogram::default();
        for millis in [0, 1, 2, 120_000, 999_999] {
            histogram.record(Duration::from_millis(millis));
        }
        assert_eq!((histogram.counts[0], histogram.counts[1]), (2, 1));
        assert_eq!((histogram.counts[15], histogram.counts[16]), (1, 1));
        assert_eq!(histogram.count(), 5);
        assert!((histogram.sum - 1_120.002).abs() < 1e-6);
    }

    #[test]
    fn every_end_is_counted_once() {
        let mut ends = Ends::default();
        ends.record(End::Cancelled);
        ends.record(End::Finished(Finish::Stop));
        ends.record(End::Failed(Failure::Step));
        assert_eq!((ends.cancelled, ends.stop, ends.step, ends.total()), (1, 1, 1, 3));
    }
}
