//! What a run comes to, and the forms in which that is shown.

mod compare;
pub mod csv;
mod fairness;
mod html;
mod settings;
mod svg;
mod table;
mod timeline;
mod times;
mod totals;
mod warnings;

use std::{collections::BTreeMap, time::SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

pub use self::{
    compare::compared,
    fairness::Fairness,
    html::page,
    timeline::Timeline,
    times::{Curves, Latency},
    totals::{Counts, Failures, Throughput},
};
use self::{
    fairness::fairness,
    settings::settings,
    timeline::timeline,
    times::curve,
    totals::{adapters, counts, errors, throughput},
    warnings::warnings,
};
use super::{
    measure::{Client, Ended, Run, Spread},
    plan::Plan,
};

/// What a report's JSON is called, so that a reader can tell it from others.
const FORMAT: &str = "chorus-bench/1";

/// What a run comes to. Latencies are in milliseconds and of requests that were answered to their end.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Report {
    /// `chorus-bench/1`
    pub format: String,
    /// As the plan has it.
    pub label: String,
    /// When it was made, in UTC.
    pub at: String,
    /// The version of chorus.
    pub version: String,
    /// The load in words.
    pub load: String,
    /// What was asked, by option.
    pub settings: BTreeMap<String, String>,
    /// Seconds from the start to the end of the last request.
    pub wall_s: f64,
    /// Why it ended.
    pub ended: Ended,
    /// What became of requests.
    pub requests: Counts,
    /// Tokens and rates.
    pub throughput: Throughput,
    /// Of all requests.
    pub latency: Latency,
    /// Of those whose adapter had answered before.
    pub warm: Option<Latency>,
    /// Of the others.
    pub cold: Option<Latency>,
    /// What was expected of a request.
    pub slo: Option<String>,
    /// Between tenants, where there are several.
    pub fairness: Option<Fairness>,
    /// Each tenant.
    pub tenants: Vec<TenantReport>,
    /// Different adapters that were asked for, the base among them.
    pub adapters_used: usize,
    /// Requests that were not answered, by kind.
    pub errors: Vec<Failures>,
    /// How it went.
    pub timeline: Timeline,
    /// The part of requests (0 to 1) that took no longer than so many milliseconds.
    pub curves: Curves,
    /// What the client itself cost.
    pub client: Client,
    /// What a reader of these numbers must know.
    pub warnings: Vec<String>,
    /// Where several loads were tried: each, from the lowest.
    #[serde(default)]
    pub sweep: Vec<Step>,
}

/// One tenant.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TenantReport {
    /// Its name.
    pub name: String,
    /// Its share of the load, as it was given.
    pub share: f64,
    /// What became of its requests.
    pub requests: Counts,
    /// Its tokens.
    pub throughput: Throughput,
    /// Its times.
    pub latency: Latency,
}

/// One load that was tried.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Step {
    /// Requests a second, requests at once, or how many times as fast as the trace.
    pub load: f64,
    /// Whether enough requests met the SLO.
    pub holds: bool,
    /// The part that did, from 0 to 1.
    pub good_share: f64,
    /// Requests a second that did.
    pub good_requests_s: f64,
    /// Tokens of answers a second.
    pub output_tokens_s: f64,
    /// What the times were.
    pub latency: Latency,
}

impl Step {
    pub(super) fn of(load: f64, share: f64, report: &Report) -> Self {
        let Throughput { good_share, good_requests_s, output_tokens_s, .. } = report.throughput;
        let holds = good_share >= share && report.requests.done > 0;
        Self { load, holds, good_share, good_requests_s, output_tokens_s, latency: report.latency }
    }
}

impl Report {
    /// What a run comes to.
    pub fn of(plan: &Plan, run: &Run) -> Self {
        let wall_s = run.wall.as_secs_f64().max(1e-9);
        let tenants: Vec<TenantReport> = plan
            .tenants
            .iter()
            .enumerate()
            .map(|(place, tenant)| {
                let own = || run.samples.iter().filter(move |sample| sample.tenant == place);
                let requests = counts(own(), plan);
                TenantReport {
                    name: tenant.name.clone(),
                    share: tenant.share,
                    requests,
                    throughput: throughput(own(), requests, wall_s),
                    latency: run.notes.tenants.get(place).map(Latency::of).unwrap_or_default(),
                }
            })
            .collect();
        let requests = counts(run.samples.iter(), plan);
        let has_cold = requests.cold > 0 && requests.cold < requests.sent;
        let notes = &run.notes;
        let mut report = Self {
            format: FORMAT.to_owned(),
            label: plan.label.clone(),
            at: DateTime::<Utc>::from(SystemTime::now()).to_rfc3339_opts(SecondsFormat::Secs, true),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            load: plan.load.to_string(),
            settings: settings(plan),
            wall_s,
            ended: run.ended,
            requests,
            throughput: throughput(run.samples.iter(), requests, wall_s),
            latency: Latency::of(&notes.all),
            warm: Latency::some(&notes.warm),
            cold: Latency::some(&notes.cold),
            slo: plan.slo.is_some().then(|| plan.slo.to_string()),
            fairness: (tenants.len() > 1).then(|| fairness(&tenants, run)).flatten(),
            tenants,
            adapters_used: adapters(run),
            errors: errors(&run.samples),
            timeline: timeline(run),
            curves: Curves {
                ttft: curve(&notes.all.ttft),
                ttft_warm: if has_cold { curve(&notes.warm.ttft) } else { Vec::new() },
                ttft_cold: if has_cold { curve(&notes.cold.ttft) } else { Vec::new() },
                itl: curve(&notes.all.itl),
                tpot: curve(&notes.all.tpot),
                e2e: curve(&notes.all.e2e),
            },
            client: run.client.clone(),
            warnings: Vec::new(),
            sweep: Vec::new(),
        };
        report.warnings = warnings(plan, run, &report);
        report
    }

    /// As it is kept.
    pub fn to_json(&self) -> String {
        // All keys are text and all numbers finite, or null.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// A report that was kept.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let report: Self = serde_json::from_str(text)
            .map_err(|why| format!("it is no report of chorus bench: {why}"))?;
        if report.format != FORMAT {
            return Err(format!("it is a report in the format {}, not {FORMAT}", report.format));
        }
        Ok(report)
    }
}
