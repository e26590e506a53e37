//! How a run went, step by step.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bench::measure::Run;

/// Points of a timeline.
const MOST_POINTS: u64 = 200;

/// How a run went: one value for each step of time.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Timeline {
    /// Seconds of a step.
    pub step_s: f64,
    /// Parts of answers that came, a second.
    pub parts_s: Vec<f64>,
    /// Requests that were due, a second.
    pub due_s: Vec<f64>,
    /// Requests that were answered to their end, a second.
    pub done_s: Vec<f64>,
    /// Requests that were refused, failed or were cut off, a second.
    pub lost_s: Vec<f64>,
    /// Requests under way in the middle of the step.
    pub running: Vec<u64>,
    /// Median time to the first token, of requests that were due in the step.
    pub ttft_p50: Vec<Option<f64>>,
    /// The time that 95 of a hundred of these took at most.
    pub ttft_p95: Vec<Option<f64>>,
}

pub(super) fn timeline(run: &Run) -> Timeline {
    let seconds = run.wall.as_secs() + 1;
    let step = seconds.div_ceil(MOST_POINTS).max(1);
    let points = usize::try_from(seconds.div_ceil(step)).unwrap_or(0);
    let place = |time: Duration| usize::try_from(time.as_secs() / step).unwrap_or(usize::MAX);
    let mut parts = vec![0_u64; points];
    for (second, heard) in run.notes.heard.iter().enumerate() {
        if let Some(parts) = parts.get_mut(second / usize::try_from(step).unwrap_or(1)) {
            *parts += heard;
        }
    }
    let mut due = vec![0_u64; points];
    let (mut done, mut lost) = (vec![0_u64; points], vec![0_u64; points]);
    let mut running = vec![0_u64; points];
    let mut ttfts = vec![Vec::new(); points];
    let middles: Vec<_> = (0..points as u64)
        .map(|point| Duration::from_secs(point * step) + Duration::from_secs(step) / 2)
        .collect();
    for sample in &run.samples {
        let at = place(sample.due);
        if let Some(due) = due.get_mut(at) {
            *due += 1;
        }
        if let (Some(ttfts), Some(ttft)) = (ttfts.get_mut(at), sample.ttft()) {
            ttfts.push(ttft.as_secs_f64() * 1e3);
        }
        let ended = if sample.is_done() { &mut done } else { &mut lost };
        if let Some(ended) = ended.get_mut(place(sample.end)) {
            *ended += 1;
        }
        let from = middles.partition_point(|middle| *middle < sample.sent);
        let to = middles.partition_point(|middle| *middle < sample.end);
        running[from..to.max(from)].iter_mut().for_each(|running| *running += 1);
    }
    // The last step is not over when the run is.
    let width = |point: usize| {
        let left = run.wall.as_secs_f64() - point as f64 * step as f64;
        left.clamp(0.1, step as f64)
    };
    let rate = |counts: Vec<u64>| {
        counts.iter().enumerate().map(|(point, count)| *count as f64 / width(point)).collect()
    };
    for ttfts in &mut ttfts {
        ttfts.sort_by(f64::total_cmp);
    }
    let at = |share: f64| ttfts.iter().map(|ttfts| quantile(ttfts, share)).collect();
    Timeline {
        step_s: step as f64,
        parts_s: rate(parts),
        due_s: rate(due),
        done_s: rate(done),
        lost_s: rate(lost),
        running,
        ttft_p50: at(0.5),
        ttft_p95: at(0.95),
    }
}

/// Of sorted values.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below the length")]
    let at = (share * sorted.len() as f64) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_few() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0], 0.5), Some(3.0));
        assert_eq!(quantile(&[1.0, 2.0], 0.95), Some(2.0));
    }
}
