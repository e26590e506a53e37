//! All that a run does.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use super::{
    arrivals::{Rate, Spacing},
    draw::Order,
    error::BenchError,
    lengths::Lengths,
    prompts::Prompts,
    slo::Slo,
    target::{Adapter, Key, Target},
    trace::Trace,
};

/// A client has no more ports for one server.
const MOST_AT_ONCE: usize = 65_535;

/// What is asked of whom, when, and what is expected.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What the report is called.
    pub label: String,
    /// The server.
    pub target: Target,
    /// Who asks; at least one.
    pub tenants: Vec<Tenant>,
    /// When it is asked.
    pub load: Load,
    /// No more requests than these are sent.
    pub requests: Option<u64>,
    /// No request is due after this.
    pub duration: Option<Duration>,
    /// What is asked before anything is measured.
    pub warmup: Warmup,
    /// What is asked.
    pub prompts: Prompts,
    /// Words that all prompts for one adapter begin with, the same ones.
    pub prefix_words: u32,
    /// Tokens of answers.
    pub output: Lengths,
    /// All that is drawn is a function of it.
    pub seed: u64,
    /// For one attempt.
    pub timeout: Duration,
    /// How often a request is sent again that was refused with 429 or 503.
    pub retries: u32,
    /// An open loop has no more than these under way; further ones are late.
    pub most_at_once: usize,
    /// What a request must keep to.
    pub slo: Slo,
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// In the report.
    pub name: String,
    /// With which it asks.
    pub key: Option<Key>,
    /// Its part of the load is this in the sum of all.
    pub share: f64,
    /// What it asks for; `None` is the base.
    pub adapters: Vec<Option<Arc<Adapter>>>,
    /// In which order.
    pub order: Order,
}

/// When requests are sent.
#[derive(Clone, Debug)]
pub enum Load {
    /// So many at once: when one ends, the next is sent.
    Closed {
        /// Under way at any time.
        concurrency: usize,
    },
    /// When they are due, whatever has become of those before.
    Open {
        /// Requests a second.
        rate: Rate,
        /// How they lie to each other.
        spacing: Spacing,
    },
    /// As they once came.
    Replay {
        /// The times and what is asked.
        trace: Arc<Trace>,
        /// How many times as fast.
        speed: f64,
    },
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { concurrency } => write!(f, "closed loop, {concurrency} at once"),
            Self::Open { rate, spacing } => write!(f, "open loop, {rate} a second, {spacing}"),
            Self::Replay { trace, speed } => {
                write!(f, "trace of {} requests, {speed} times as fast", trace.count())
            }
        }
    }
}

/// What is asked before anything is measured, so that connections are open and memory is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warmup {
    /// So many requests, as the run's are, one after the other.
    Requests(u32),
    /// One request for each adapter of each tenant, so that none is cold.
    Each,
}

impl FromStr for Warmup {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "each" => Ok(Self::Each),
            number => number.parse().map(Self::Requests).map_err(|_| {
                "a number of requests is expected, or each for one an adapter".to_owned()
            }),
        }
    }
}

impl fmt::Display for Warmup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requests(count) => write!(f, "{count}"),
            Self::Each => f.write_str("each"),
        }
    }
}

impl Plan {
    /// Refuses a plan that contradicts itself.
    pub fn check(&self) -> Result<(), BenchError> {
        let refused = |why: String| Err(BenchError::Plan(why));
        if self.tenants.is_empty() {
            return refused("nobody asks: name a tenant".to_owned());
        }
        for (place, tenant) in self.tenants.iter().enumerate() {
            let name = &tenant.name;
            if tenant.adapters.is_empty() {
                return refused(format!("tenant {name} has no adapters; base is the base itself"));
            }
            if !(tenant.share > 0.0 && tenant.share.is_finite()) {
                return refused(format!("tenant {name}: its share must be above 0"));
            }
            if self.tenants[..place].iter().any(|other| other.name == *name) {
                return refused(format!("tenant {name} is there twice"));
            }
        }
        match &self.load {
            Load::Closed { concurrency } if *concurrency < self.tenants.len() => refused(format!(
                "{concurrency} at once are too few for {} tenants, who each have some of their own: raise --concurrency",
                self.tenants.len()
            )),
            Load::Closed { concurrency } if *concurrency > MOST_AT_ONCE => refused(format!(
                "{concurrency} at once are more than one client can keep up, which is {MOST_AT_ONCE}: lower --concurrency"
            )),
            Load::Open { rate, .. } if rate.is_ramp() && self.duration.is_none() => {
                refused(format!(
                    "a rate that goes from one to another ({rate}) needs a --duration to do it in"
                ))
            }
            Load::Replay { trace, .. } if self.tenants.len() > 1 => {
                let known = |name: &String| self.tenants.iter().any(|tenant| tenant.name == *name);
                match trace.tenants().iter().find(|name| !known(name)) {
                    Some(name) => {
                        refused(format!("the trace has a tenant {name}, the plan has none"))
                    }
                    None => Ok(()),
                }
            }
            Load::Closed { .. } | Load::Open { .. }
                if self.requests.is_none() && self.duration.is_none() =>
            {
                refused("a run needs an end: --requests or --duration".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// How many of a closed loop's requests at once are whose: as the shares are, and one at least.
    pub(super) fn desks(&self, concurrency: usize) -> Vec<usize> {
        let mut desks = vec![1; self.tenants.len()];
        for _ in self.tenants.len()..concurrency {
            // The next one goes to whoever has least for its share.
            let has = |place: usize| desks[place] as f64 / self.tenants[place].share;
            let next = (0..desks.len()).min_by(|a, b| has(*a).total_cmp(&has(*b)));
            if let Some(next) = next {
                desks[next] += 1;
            }
        }
        desks
    }
}
