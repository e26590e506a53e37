//! What became of requests, and at what rate.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bench::{
    measure::{LATE, Outcome, Run, Sample},
    plan::Plan,
};

/// What became of requests.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// All that were sent.
    pub sent: u64,
    /// Answered to their end.
    pub done: u64,
    /// Refused with 429 or 503.
    pub refused: u64,
    /// Neither.
    pub failed: u64,
    /// Under way when the run was ended.
    pub unfinished: u64,
    /// Further attempts: after refusals, where that was asked for, and after connections that were closed before an answer began.
    pub retries: u64,
    /// Sent more than 10 ms after they were due.
    pub late: u64,
    /// Answered within the SLO; all that were answered, where there is none.
    pub good: u64,
    /// Cold ones.
    pub cold: u64,
}

/// Tokens and rates, of requests that were answered to their end, over the whole wall time.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Throughput {
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Tokens of answers.
    pub output_tokens: u64,
    /// Tokens of answers a second.
    pub output_tokens_s: f64,
    /// All tokens a second.
    pub total_tokens_s: f64,
    /// Requests a second.
    pub requests_s: f64,
    /// Requests a second that met the SLO.
    pub good_requests_s: f64,
    /// Their part of all that were sent and not cut off by the end of the run, from 0 to 1.
    pub good_share: f64,
}

/// Requests that were not answered, of one kind.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Failures {
    /// Status or kind.
    pub kind: String,
    /// How many.
    pub count: u64,
    /// What the first one said.
    pub first: String,
}

pub(super) fn counts<'a>(samples: impl Iterator<Item = &'a Sample>, plan: &Plan) -> Counts {
    let mut counts = Counts::default();
    for sample in samples {
        counts.sent += 1;
        counts.retries += u64::from(sample.attempts.saturating_sub(1));
        counts.late += u64::from(sample.lateness() > LATE);
        counts.cold += u64::from(sample.cold);
        counts.good += u64::from(plan.slo.is_met(sample));
        match sample.outcome {
            Outcome::Done => counts.done += 1,
            Outcome::Refused { .. } => counts.refused += 1,
            Outcome::Failed { .. } => counts.failed += 1,
            Outcome::Unfinished => counts.unfinished += 1,
        }
    }
    counts
}

pub(super) fn throughput<'a>(
    samples: impl Iterator<Item = &'a Sample>,
    counts: Counts,
    wall_s: f64,
) -> Throughput {
    let mut sums = Throughput::default();
    for sample in samples.filter(|sample| sample.is_done()) {
        // A server may say anything.
        sums.prompt_tokens = sums.prompt_tokens.saturating_add(sample.prompt_tokens);
        sums.output_tokens = sums.output_tokens.saturating_add(sample.output_tokens);
    }
    let asked = counts.sent - counts.unfinished;
    Throughput {
        output_tokens_s: sums.output_tokens as f64 / wall_s,
        total_tokens_s: (sums.output_tokens + sums.prompt_tokens) as f64 / wall_s,
        requests_s: counts.done as f64 / wall_s,
        good_requests_s: counts.good as f64 / wall_s,
        good_share: if asked == 0 { 0.0 } else { counts.good as f64 / asked as f64 },
        ..sums
    }
}

pub(super) fn adapters(run: &Run) -> usize {
    let used: std::collections::BTreeSet<_> =
        run.samples.iter().map(|sample| (sample.tenant, &sample.adapter)).collect();
    used.len()
}

pub(super) fn errors(samples: &[Sample]) -> Vec<Failures> {
    let mut kinds: BTreeMap<String, Failures> = BTreeMap::new();
    for sample in samples {
        let why = match &sample.outcome {
            Outcome::Done | Outcome::Unfinished => continue,
            Outcome::Refused { .. } => "",
            Outcome::Failed { why, .. } => why,
        };
        let kind = sample.outcome.word();
        let failures = kinds.entry(kind.clone()).or_insert_with(|| Failures {
            kind,
            count: 0,
            first: why.to_owned(),
        });
        failures.count += 1;
    }
    let mut errors: Vec<_> = kinds.into_values().collect();
    errors.sort_by_key(|failures| std::cmp::Reverse(failures.count));
    errors
}
