//! What a run comes to, and the forms in which that is shown.

mod compare;
pub mod csv;
mod html;
mod svg;
mod table;

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use chrono::{DateTime, SecondsFormat, Utc};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

pub use self::{compare::compared, html::page};
use super::{
    measure::{Client, Ended, LATE, Latencies, Outcome, Run, Sample, Spread},
    plan::Plan,
    prompts::Prompts,
};

/// What a report's JSON is called, so that a reader can tell it from others.
const FORMAT: &str = "chorus-bench/1";
/// Points of a timeline.
const MOST_POINTS: u64 = 200;
/// A client whose threads are at work for more than this part of the time measures itself.
const BUSY: f64 = 0.8;
/// Wake-ups that take longer than this, or than a tenth of what is measured, change it.
const SLOW_WAKE_MS: f64 = 2.0;

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
    fn of(latencies: &Latencies) -> Self {
        let Latencies { ttft, itl, tpot, e2e } = latencies;
        let [ttft, itl, tpot, e2e] = [ttft, itl, tpot, e2e].map(Spread::of);
        Self { ttft, itl, tpot, e2e }
    }

    fn some(latencies: &Latencies) -> Option<Self> {
        Some(Self::of(latencies)).filter(|latency| latency.e2e.is_some())
    }
}

/// Jain's index of what tenants got: 1 where all got the same, 1/n where one of n got everything.
///
/// `(x1 + .. + xn)^2 / (n (x1^2 + .. + xn^2))`: R. Jain, D. Chiu, W. Hawe, "A Quantitative Measure of Fairness and
/// Discrimination for Resource Allocation in Shared Computer Systems", DEC-TR-301, 1984.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Fairness {
    /// Of tokens of answers.
    pub tokens: f64,
    /// Of the part of what each asked for that it got, in tokens of answers.
    pub served: f64,
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

fn settings(plan: &Plan) -> BTreeMap<String, String> {
    let target = &plan.target;
    let prompts = match &plan.prompts {
        Prompts::Words(words) => format!("{words} words"),
        Prompts::Dataset(dataset) => format!("a file of {}", dataset.count()),
    };
    let adapters: usize = plan.tenants.iter().map(|tenant| tenant.adapters.len()).sum();
    let order = plan.tenants.first().map(|tenant| tenant.order.to_string()).unwrap_or_default();
    let perhaps = |value: Option<String>| value.unwrap_or_else(|| "no bound".to_owned());
    [
        ("url", target.url.clone()),
        ("api", format!("{:?}", target.api).to_lowercase()),
        ("select", format!("{:?}", target.select).to_lowercase()),
        ("model", target.model.clone()),
        ("adapters", adapters.to_string()),
        ("order", order),
        ("tenants", plan.tenants.len().to_string()),
        ("prompts", prompts),
        ("prefix-words", plan.prefix_words.to_string()),
        ("output-tokens", plan.output.to_string()),
        ("temperature", target.temperature.to_string()),
        ("ignore-eos", target.ignore_eos.to_string()),
        ("requests", perhaps(plan.requests.map(|requests| requests.to_string()))),
        ("duration", perhaps(plan.duration.map(|time| format!("{} s", time.as_secs_f64())))),
        ("warmup", plan.warmup.to_string()),
        ("seed", plan.seed.to_string()),
        ("timeout", format!("{} s", plan.timeout.as_secs_f64())),
        ("retries", plan.retries.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

fn counts<'a>(samples: impl Iterator<Item = &'a Sample>, plan: &Plan) -> Counts {
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

fn throughput<'a>(
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

/// See [`Fairness`]; `None` where nobody got anything.
fn jain(got: &[f64]) -> Option<f64> {
    let sum: f64 = got.iter().sum();
    let squares: f64 = got.iter().map(|x| x * x).sum();
    (squares > 0.0).then(|| sum * sum / (got.len() as f64 * squares))
}

fn fairness(tenants: &[TenantReport], run: &Run) -> Option<Fairness> {
    let tokens: Vec<f64> =
        tenants.iter().map(|tenant| tenant.throughput.output_tokens as f64).collect();
    let mut asked = vec![0.0; tenants.len()];
    for sample in run.samples.iter().filter(|sample| sample.outcome != Outcome::Unfinished) {
        if let Some(asked) = asked.get_mut(sample.tenant) {
            *asked += f64::from(sample.asked_tokens);
        }
    }
    // Who asked for nothing is not treated unfairly.
    let served: Vec<f64> = tokens
        .iter()
        .zip(&asked)
        .filter(|(_, asked)| **asked > 0.0)
        .map(|(tokens, asked)| (tokens / asked).min(1.0))
        .collect();
    Some(Fairness { tokens: jain(&tokens)?, served: jain(&served)? })
}

fn adapters(run: &Run) -> usize {
    let used: std::collections::BTreeSet<_> =
        run.samples.iter().map(|sample| (sample.tenant, &sample.adapter)).collect();
    used.len()
}

fn errors(samples: &[Sample]) -> Vec<Failures> {
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

fn timeline(run: &Run) -> Timeline {
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

fn curve(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    if histogram.is_empty() {
        return Vec::new();
    }
    let hundredths = (0..100).map(|part| f64::from(part) / 100.0);
    let shares = hundredths.chain([0.995, 0.999, 1.0]);
    shares.map(|share| (histogram.value_at_quantile(share) as f64 / 1e3, share)).collect()
}

fn warnings(plan: &Plan, run: &Run, report: &Report) -> Vec<String> {
    let mut warnings = Vec::new();
    let Counts { sent, done, late, .. } = report.requests;
    match report.ended {
        Ended::Complete => {}
        Ended::Interrupted => warnings.push("the run was ended before it was complete".to_owned()),
        Ended::ServerGone => warnings.push(format!(
            "the server was gone after {:.0} s: no connection could be made any more",
            report.wall_s
        )),
    }
    let client = &report.client;
    if late > 0 {
        let p99 = client.late_ms.map_or(0.0, |late| late.p99);
        warnings.push(format!(
            "{late} of {sent} requests were sent more than 10 ms after they were due (p99 {p99:.1} ms); their latencies have that in them"
        ));
    }
    let measured = [report.latency.ttft, report.latency.tpot].into_iter().flatten();
    let least = measured.map(|spread| spread.p50).fold(f64::INFINITY, f64::min);
    if let Some(wake) = client.wake_ms.filter(|wake| wake.p99 > SLOW_WAKE_MS.max(least / 10.0)) {
        warnings.push(format!(
            "the client itself was slow: what had arrived waited for it for {:.1} ms (p99), and latencies have that in them; give it a processor of its own",
            wake.p99
        ));
    }
    if client.busy > BUSY {
        warnings.push(format!(
            "the client's threads were at work for {:.0} % of the time: it may be what was measured; raise --threads or ask from several machines",
            client.busy * 100.0
        ));
    }
    let answered: Vec<&Sample> = run.samples.iter().filter(|sample| sample.is_done()).collect();
    let short = answered
        .iter()
        .filter(|sample| sample.output_tokens < u64::from(sample.asked_tokens))
        .count();
    if plan.target.ignore_eos && short > 0 {
        warnings.push(format!(
            "{short} of {done} answers are shorter than was asked for: the server may not know ignore_eos, or a context was full"
        ));
    }
    let uncounted = answered.iter().filter(|sample| !sample.counted).count();
    if uncounted > 0 {
        warnings.push(format!(
            "the server did not count the tokens of {uncounted} of {done} answers: parts of their streams are counted instead"
        ));
    }
    let (tokens, parts) =
        (report.throughput.output_tokens, report.latency.itl.map_or(0, |itl| itl.count) + done);
    if tokens as f64 > parts as f64 * 1.1 {
        warnings.push(format!(
            "parts of streams have {:.1} tokens on average: times between parts are not times between tokens, which the line \"per token\" has",
            tokens as f64 / parts as f64
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jains_index_of_known_shares() {
        for (got, index) in [
            (&[3.0, 3.0, 3.0][..], 1.0),
            (&[1.0, 0.0, 0.0, 0.0], 0.25),
            // The paper's own example of discrimination: two of three users get everything, equally.
            (&[5.0, 5.0, 0.0], 2.0 / 3.0),
            (&[1.0, 2.0, 3.0], 36.0 / 42.0),
        ] {
            assert!((jain(got).unwrap() - index).abs() < 1e-12, "{got:?}");
        }
        assert_eq!(jain(&[0.0, 0.0]), None);
        assert_eq!(jain(&[]), None);
    }

    #[test]
    fn quantiles_of_few() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0], 0.5), Some(3.0));
        assert_eq!(quantile(&[1.0, 2.0], 0.95), Some(2.0));
    }
}
