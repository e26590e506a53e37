//! How long requests took.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::bench::measure::{Latencies, Spread};

/// Times of some requests.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Latency {
    /// From when a request was due to its first token.
    pub ttft: Option<Spread>,
    /// Between parts of an answer.
    pub itl: Option<Spread>,
    /// Each request's mean time between its tokens.
    pub tpot: Option<Spread>,
    /// From when a request was due to its end.
    pub e2e: Option<Spread>,
}

impl Latency {
    pub(super) fn of(latencies: &Latencies) -> Self {
        let Latencies { ttft, itl, tpot, e2e } = latencies;
        let [ttft, itl, tpot, e2e] = [ttft, itl, tpot, e2e].map(Spread::of);
        Self { ttft, itl, tpot, e2e }
    }

    pub(super) fn some(latencies: &Latencies) -> Option<Self> {
        Some(Self::of(latencies)).filter(|latency| latency.e2e.is_some())
    }
}

/// Distributions as points of milliseconds and parts.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Curves {
    /// To the first token.
    pub ttft: Vec<(f64, f64)>,
    /// The same of warm requests, where some were cold.
    pub ttft_warm: Vec<(f64, f64)>,
    /// The same of cold ones.
    pub ttft_cold: Vec<(f64, f64)>,
    /// Between parts of answers.
    pub itl: Vec<(f64, f64)>,
    /// Each request's mean between its tokens.
    pub tpot: Vec<(f64, f64)>,
    /// To the end.
    pub e2e: Vec<(f64, f64)>,
}

pub(super) fn curve(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    if histogram.is_empty() {
        return Vec::new();
    }
    let hundredths = (0..100).map(|part| f64::from(part) / 100.0);
    let shares = hundredths.chain([0.995, 0.999, 1.0]);
    shares.map(|share| (histogram.value_at_quantile(share) as f64 / 1e3, share)).collect()
}
