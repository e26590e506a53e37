//! What is noted of each request, and what they come to together.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Times above this many microseconds are noted as this: a day.
const MOST_MICROS: u64 = 86_400_000_000;
/// Requests that are sent later than this after they were due are counted as late.
pub(super) const LATE: Duration = Duration::from_millis(10);
/// Beyond so many tenants each one's histograms have two digits instead of three, which take an eighth of the memory.
const MANY_TENANTS: usize = 64;

/// What became of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// Answered to its end.
    Done,
    /// The server had no room, or a quota was used up.
    Refused {
        /// 429 or 503.
        status: u16,
    },
    /// Anything else.
    Failed {
        /// What kind of failure, in few words.
        kind: String,
        /// What was said.
        why: String,
    },
    /// The run was ended first.
    #[default]
    Unfinished,
}

impl Outcome {
    /// The kind of failure of which a server that is gone has many.
    pub(super) const UNREACHABLE: &str = "no connection";

    pub(super) fn failed(kind: &str, why: &str) -> Self {
        Self::Failed { kind: kind.to_owned(), why: why.to_owned() }
    }

    /// In one or two words.
    pub fn word(&self) -> String {
        match self {
            Self::Done => "done".to_owned(),
            Self::Refused { status } => format!("refused {status}"),
            Self::Failed { kind, .. } => kind.clone(),
            Self::Unfinished => "unfinished".to_owned(),
        }
    }
}

/// One request. Times are since the start of the run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Its place in the plan's tenants.
    pub tenant: usize,
    /// None is the base.
    pub adapter: Option<Arc<str>>,
    /// Whether no request for its adapter had been answered by so much as a token when it was sent.
    pub cold: bool,
    /// When it was to be sent; in a closed loop, when it was sent.
    pub due: Duration,
    /// When it was sent first.
    pub sent: Duration,
    /// When the first part of its answer was there.
    pub first: Option<Duration>,
    /// When the last part was there.
    pub last: Option<Duration>,
    /// When it was over.
    pub end: Duration,
    /// As the server counts them; 0 where it does not.
    pub prompt_tokens: u64,
    /// As the server counts them, or parts where it does not.
    pub output_tokens: u64,
    /// Whether the server counted.
    pub counted: bool,
    /// Words of its prompt, where it was made of words.
    pub asked_words: Option<u32>,
    /// Tokens that were asked for.
    pub asked_tokens: u32,
    /// How often it was sent.
    pub attempts: u32,
    /// What became of it.
    pub outcome: Outcome,
}

impl Sample {
    /// Whether it was answered to its end.
    pub fn is_done(&self) -> bool {
        self.outcome == Outcome::Done
    }

    /// From when it was due to its first token.
    pub fn ttft(&self) -> Option<Duration> {
        Some(self.first?.saturating_sub(self.due))
    }

    /// The mean time between its tokens; `None` if it has but one.
    pub fn between_tokens(&self) -> Option<Duration> {
        let gaps = u32::try_from(self.output_tokens.saturating_sub(1)).ok()?;
        self.last?.saturating_sub(self.first?).checked_div(gaps)
    }

    /// From when it was due to its end.
    pub fn e2e(&self) -> Duration {
        self.end.saturating_sub(self.due)
    }

    /// How late it was sent.
    pub fn lateness(&self) -> Duration {
        self.sent.saturating_sub(self.due)
    }
}

/// Milliseconds; values are those of a histogram with three significant digits.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Spread {
    /// How many there are.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// Half are no greater.
    pub p50: f64,
    /// Nine of ten are no greater.
    pub p90: f64,
    /// 95 of a hundred are no greater.
    pub p95: f64,
    /// 99 of a hundred are no greater.
    pub p99: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// `None` where there is nothing.
    pub(super) fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let millis = |micros: u64| micros as f64 / 1e3;
        let at = |quantile: f64| millis(histogram.value_at_quantile(quantile));
        (!histogram.is_empty()).then(|| Self {
            count: histogram.len(),
            mean: histogram.mean() / 1e3,
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            max: millis(histogram.max()),
        })
    }
}

/// For microseconds; it grows with what is recorded.
pub(super) fn histogram(digits: u8) -> Histogram<u64> {
    Histogram::new(digits).expect("there are at most three digits")
}

/// Records a time.
pub(super) fn record(histogram: &mut Histogram<u64>, time: Duration) {
    let micros = u64::try_from(time.as_micros()).unwrap_or(MOST_MICROS).min(MOST_MICROS);
    // It has room for a day, and can be made larger for as long as there is memory.
    let _ = histogram.record(micros);
}

/// Latencies of some requests, in microseconds.
#[derive(Clone, Debug)]
pub(super) struct Latencies {
    pub(super) ttft: Histogram<u64>,
    /// Between parts of answers.
    pub(super) itl: Histogram<u64>,
    /// Each request's mean between tokens.
    pub(super) tpot: Histogram<u64>,
    pub(super) e2e: Histogram<u64>,
}

impl Latencies {
    fn new(digits: u8) -> Self {
        let [ttft, itl, tpot, e2e] = [(); 4].map(|()| histogram(digits));
        Self { ttft, itl, tpot, e2e }
    }

    fn note(&mut self, sample: &Sample, parts: &[Instant]) {
        record(&mut self.e2e, sample.e2e());
        if let Some(ttft) = sample.ttft() {
            record(&mut self.ttft, ttft);
        }
        if let Some(between) = sample.between_tokens() {
            record(&mut self.tpot, between);
        }
        for pair in parts.windows(2) {
            record(&mut self.itl, pair[1].saturating_duration_since(pair[0]));
        }
    }
}

/// What the client itself cost.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Client {
    /// Threads that send and listen.
    pub threads: usize,
    /// The part of their time in which they were at work, from 0 to 1.
    pub busy: f64,
    /// Processor time in seconds, where the system tells.
    pub cpu_s: Option<f64>,
    /// How late requests were sent, in milliseconds.
    pub late_ms: Option<Spread>,
    /// How long it took until the client saw what was there for it, in milliseconds.
    pub wake_ms: Option<Spread>,
}

/// Why a run is over.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// All was asked and answered.
    Complete,
    /// Somebody ended it.
    Interrupted,
    /// There was no server any more.
    ServerGone,
}

/// All that was noted.
#[derive(Debug)]
pub struct Run {
    /// In the order in which they ended.
    pub samples: Vec<Sample>,
    /// From the start to the end of the last request.
    pub wall: Duration,
    /// Why it is over.
    pub ended: Ended,
    /// What it cost here.
    pub client: Client,
    pub(super) notes: Notes,
}

/// Sums over all requests.
#[derive(Debug)]
pub(super) struct Notes {
    pub(super) all: Latencies,
    pub(super) cold: Latencies,
    pub(super) warm: Latencies,
    /// By tenant.
    pub(super) tenants: Vec<Latencies>,
    /// Parts of answers that came in each second.
    pub(super) heard: Vec<u64>,
    /// How late requests were sent.
    pub(super) late: Histogram<u64>,
}

/// Notes each request when it is over.
#[derive(Debug)]
pub(super) struct Recorder {
    begun: Instant,
    pub(super) samples: Vec<Sample>,
    pub(super) notes: Notes,
    /// Adapters of which there was a token.
    warm: HashSet<Option<Arc<str>>>,
}

impl Recorder {
    pub(super) fn new(begun: Instant, tenants: usize) -> Self {
        let digits = if tenants > MANY_TENANTS { 2 } else { 3 };
        let notes = Notes {
            all: Latencies::new(3),
            cold: Latencies::new(3),
            warm: Latencies::new(3),
            tenants: (0..tenants).map(|_| Latencies::new(digits)).collect(),
            heard: Vec::new(),
            late: histogram(3),
        };
        Self { begun, samples: Vec::new(), notes, warm: HashSet::new() }
    }

    /// From here on times are measured.
    pub(super) fn begin(&mut self, begun: Instant) {
        self.begun = begun;
    }

    /// Whether an adapter has answered before. Tenants may mean different ones by one name, which are told apart.
    pub(super) fn is_cold(&self, tenant: usize, adapter: Option<&Arc<str>>) -> bool {
        !self.warm.contains(&warmed(tenant, adapter))
    }

    /// An adapter has answered.
    pub(super) fn warmed(&mut self, tenant: usize, adapter: Option<&Arc<str>>) {
        self.warm.insert(warmed(tenant, adapter));
    }

    /// A request is over.
    pub(super) fn note(&mut self, sample: Sample, parts: &[Instant]) {
        for part in parts {
            let second = part.saturating_duration_since(self.begun).as_secs();
            let Ok(second) = usize::try_from(second) else { continue };
            if self.notes.heard.len() <= second {
                self.notes.heard.resize(second + 1, 0);
            }
            self.notes.heard[second] += 1;
        }
        record(&mut self.notes.late, sample.lateness());
        if sample.is_done() {
            let group = if sample.cold { &mut self.notes.cold } else { &mut self.notes.warm };
            group.note(&sample, parts);
            self.notes.all.note(&sample, parts);
            if let Some(tenant) = self.notes.tenants.get_mut(sample.tenant) {
                tenant.note(&sample, parts);
            }
        }
        self.samples.push(sample);
    }
}

fn warmed(tenant: usize, adapter: Option<&Arc<str>>) -> Option<Arc<str>> {
    // The base is everybody's.
    adapter.map(|name| format!("{tenant}/{name}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_known_samples() {
        let mut known = histogram(3);
        for millis in 1..=1000_u64 {
            record(&mut known, Duration::from_millis(millis));
        }
        let spread = Spread::of(&known).unwrap();
        assert_eq!(spread.count, 1000);
        for (value, exact) in [
            (spread.mean, 500.5),
            (spread.p50, 500.0),
            (spread.p90, 900.0),
            (spread.p95, 950.0),
            (spread.p99, 990.0),
            (spread.max, 1000.0),
        ] {
            assert!((value / exact - 1.0).abs() < 2e-3, "{value} is not {exact}");
        }
        assert_eq!(Spread::of(&histogram(3)), None);
    }

    #[test]
    fn a_request_is_noted_where_it_belongs() {
        let begun = Instant::now();
        let at = |millis| begun + Duration::from_millis(millis);
        let mut recorder = Recorder::new(begun, 2);
        let name: Arc<str> = "sql".into();
        assert!(recorder.is_cold(0, Some(&name)));
        recorder.warmed(0, Some(&name));
        assert!(!recorder.is_cold(0, Some(&name)) && recorder.is_cold(1, Some(&name)));
        let sample = Sample {
            tenant: 1,
            cold: true,
            due: Duration::from_millis(100),
            sent: Duration::from_millis(130),
            first: Some(Duration::from_millis(500)),
            last: Some(Duration::from_millis(1500)),
            end: Duration::from_millis(1600),
            output_tokens: 3,
            outcome: Outcome::Done,
            ..Sample::default()
        };
        let parts = [at(500), at(700), at(1500)];
        recorder.note(sample.clone(), &parts);
        recorder.note(Sample { outcome: Outcome::Unfinished, ..sample }, &parts[..1]);
        let notes = &recorder.notes;
        assert_eq!(notes.heard, [3, 1]);
        assert_eq!((notes.all.e2e.len(), notes.cold.e2e.len(), notes.warm.e2e.len()), (1, 1, 0));
        assert_eq!((notes.tenants[0].itl.len(), notes.tenants[1].itl.len()), (0, 2));
        assert_eq!(notes.late.len(), 2);
        let close = |histogram: &Histogram<u64>, millis: f64| {
            (Spread::of(histogram).unwrap().p50 / millis - 1.0).abs() < 2e-3
        };
        assert!(close(&notes.all.ttft, 400.0) && close(&notes.all.e2e, 1500.0));
        assert!(close(&notes.all.tpot, 500.0) && close(&notes.late, 30.0));
    }
}
