//! What is counted, under names that begin with `chorus_`. Tenants and adapters are named in what they have used, and there only
//! as many as the ledger tells apart.
//!
//! The text is `OpenMetrics`, and such that it can be read as Prometheus' older format too, as gateways do: no type is one that it
//! does not know.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::Response,
};
use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeLabelSet, NoLabelSet,
        text::{encode_eof, encode_registry},
    },
    metrics::{MetricType, counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use super::{
    app::{App, LoraInfo},
    gateway::{Load, Loras},
    generator::Generator,
    report::{Report, Times},
};
use crate::{
    adapter::{self, Adapters},
    engine::{self, Event},
    ledger::{Ledger, Part, Spent, Total},
    tenant::Tenants,
};

/// Upper bounds in seconds for what takes one prompt: from a warm small model to a long queue.
const FIRST_TOKEN: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
/// Upper bounds in seconds for what takes one step.
const NEXT_TOKEN: [f64; 12] =
    [0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 5.0];
/// Upper bounds in seconds for what takes a whole answer.
const WHOLE: [f64; 14] =
    [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0];

/// How much is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detail {
    /// All of it.
    Named,
    /// What names no tenant and no adapter.
    Unnamed,
}

/// The counters of this module, and a way to those of others.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    /// What names tenants and adapters.
    named: Registry,
    gateway: Gateway,
    requests: Family<RequestLabels, Counter>,
    latencies: Latencies,
}

/// What has names of others, which have no prefix.
#[derive(Debug)]
struct Gateway {
    unnamed: Registry,
    named: Registry,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    /// The route as it is declared, never as it was asked for: their number is bounded.
    endpoint: String,
    code: u16,
}

/// Shared with every running choice.
#[derive(Clone, Debug)]
struct Latencies {
    first_token: Histogram,
    next_token: Histogram,
    whole: Histogram,
}

impl Metrics {
    /// Counts for this engine and these adapters.
    pub(super) fn new(
        generator: Arc<dyn Generator>,
        adapters: Adapters,
        (ledger, tenants): (Ledger, Tenants),
        shown: LoraInfo,
    ) -> Self {
        let mut registry = Registry::with_prefix("chorus");
        let build = Family::<_, Gauge>::default();
        build.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))]).set(1);
        registry.register("build_info", "The running release", build);
        let requests = Family::default();
        registry.register("requests", "HTTP requests answered", requests.clone());
        let latencies = Latencies {
            first_token: Histogram::new(FIRST_TOKEN),
            next_token: Histogram::new(NEXT_TOKEN),
            whole: Histogram::new(WHOLE),
        };
        for (name, help, histogram) in [
            (
                "time_to_first_token_seconds",
                "From a job's start to its first token",
                &latencies.first_token,
            ),
            ("inter_token_latency_seconds", "From one token to the next", &latencies.next_token),
            ("e2e_request_latency_seconds", "From a job's start to its end", &latencies.whole),
        ] {
            registry.register(name, help, histogram.clone());
        }
        let gateway = Gateway::new(&generator, (&adapters, &tenants), shown);
        registry.register_collector(Box::new(Snapshots { generator, adapters }));
        let mut named = Registry::with_prefix("chorus");
        named.register_collector(Box::new(Usage { ledger, tenants }));
        Self { registry, named, gateway, requests, latencies }
    }

    /// A stopwatch for one choice that has been submitted now; what it shows in the end is told to the report.
    pub(super) fn latency(&self, report: Report) -> Latency {
        let began = Instant::now();
        let times = Times { submitted: Some(began), ..Times::default() };
        Latency { latencies: self.latencies.clone(), began, times, report }
    }

    /// So much of it in Prometheus' text format.
    pub(super) fn encode(&self, detail: Detail) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        encode_registry(&mut text, &self.gateway.unnamed)?;
        if detail == Detail::Named {
            encode_registry(&mut text, &self.named)?;
            encode_registry(&mut text, &self.gateway.named)?;
        }
        encode_eof(&mut text)?;
        Ok(text)
    }

    fn answered(&self, endpoint: &str, code: u16) {
        let labels = RequestLabels { endpoint: endpoint.to_owned(), code };
        self.requests.get_or_create(&labels).inc();
    }
}

impl Gateway {
    fn new(
        generator: &Arc<dyn Generator>,
        (adapters, tenants): (&Adapters, &Tenants),
        shown: LoraInfo,
    ) -> Self {
        let loras =
            |detail| Box::new(Loras::new((adapters.clone(), tenants.clone()), shown, detail));
        let (mut unnamed, mut named) = (Registry::default(), Registry::default());
        let load = Load { generator: Arc::clone(generator), adapters: adapters.clone() };
        unnamed.register_collector(Box::new(load));
        unnamed.register_collector(loras(Detail::Unnamed));
        named.register_collector(loras(Detail::Named));
        Self { unnamed, named }
    }
}

/// Measures one choice.
#[derive(Debug)]
pub(super) struct Latency {
    latencies: Latencies,
    began: Instant,
    times: Times,
    report: Report,
}

impl Latency {
    /// Takes the time of an event.
    pub(super) fn observe(&mut self, event: &Event) {
        let now = Instant::now();
        let whole = |since: Duration| since.as_secs_f64();
        let latest = self.times.last.replace(now);
        match event {
            Event::Token { .. } => {
                let Latencies { first_token, next_token, .. } = &self.latencies;
                match latest.filter(|_| self.times.first.is_some()) {
                    None => first_token.observe(whole(now - self.began)),
                    Some(latest) => next_token.observe(whole(now - latest)),
                }
                self.times.first.get_or_insert(now);
            }
            Event::Pooled(_) => self.times.first = Some(now),
            Event::Finished(_) => self.latencies.whole.observe(whole(now - self.began)),
            Event::Begun { waited, .. } => {
                // The engine's clock has begun a moment before ours.
                let begun = now.min(self.began + *waited);
                self.times.begun = Some(begun);
                self.times.submitted = Some(begun.checked_sub(*waited).unwrap_or(begun));
            }
            Event::Prompt(_) | Event::Failed(_) => {}
        }
    }
}

impl Drop for Latency {
    /// Also of a choice that is given up.
    fn drop(&mut self) {
        self.report.took(self.times);
    }
}

/// Counts each answer by its route and status.
pub(super) async fn layer(State(app): State<App>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    let endpoint = route.as_ref().map_or("other", MatchedPath::as_str);
    app.metrics().answered(endpoint, response.status().as_u16());
    response
}

/// What the engine and the adapter cache count themselves, read when it is asked for.
#[derive(Debug)]
struct Snapshots {
    generator: Arc<dyn Generator>,
    adapters: Adapters,
}

/// What the ledger has summed since the start.
#[derive(Debug)]
struct Usage {
    ledger: Ledger,
    tenants: Tenants,
}

/// Whose usage a series counts.
#[derive(Clone, Debug, EncodeLabelSet)]
struct AccountLabels {
    tenant: String,
    /// Empty for the base.
    adapter: String,
}

/// As a tenant or adapter, where there are too many to be told apart. No name has brackets.
const OTHERS: &str = "(others)";

impl Collector for Snapshots {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = SnapshotWriter(encoder);
        write_engine(&mut writer, &self.generator.stats())?;
        write_adapters(&mut writer, &self.adapters.stats())
    }
}

impl Collector for Usage {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        write_usage(&mut SnapshotWriter(encoder), &self.totals())
    }
}

impl Usage {
    /// By names, as far as they are told apart.
    fn totals(&self) -> Vec<(AccountLabels, Spent)> {
        let labelled = |Total { tenant, of, spent }| {
            let tenant = match tenant {
                // One that another server has made a moment ago has only its number.
                Some(id) => {
                    self.tenants.name(id).map_or_else(|| format!("#{}", id.number()), String::from)
                }
                None => OTHERS.to_owned(),
            };
            let adapter = match of {
                Part::Base => String::new(),
                Part::Adapter(name) => name,
                Part::Others => OTHERS.to_owned(),
            };
            (AccountLabels { tenant, adapter }, spent)
        };
        self.ledger.totals().into_iter().map(labelled).collect()
    }
}

struct SnapshotWriter<'a>(DescriptorEncoder<'a>);

impl SnapshotWriter<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: usize) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    /// One gauge for each place where adapters are.
    fn by_tier(&mut self, name: &str, help: &str, values: [(&str, u64); 2]) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (tier, value) in values {
            metric.encode_family(&[("tier", tier)])?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// `_total` is added to the name.
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    /// One series for each account that has used something of it.
    fn used(
        &mut self,
        (name, help): (&str, &str),
        usage: &[(AccountLabels, Spent)],
        of: impl Fn(&Spent) -> u64,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, spent) in usage.iter().filter(|(_, spent)| of(spent) > 0) {
            let mut series = metric.encode_family(labels)?;
            series.encode_counter::<NoLabelSet, _, u64>(&of(spent), None)?;
        }
        Ok(())
    }

    /// Each bucket counts for itself; the last has no bound.
    fn histogram(
        &mut self,
        name: &str,
        help: &str,
        (buckets, sum): (&[(f64, u64)], f64),
    ) -> fmt::Result {
        let count = buckets.iter().map(|(_, count)| count).sum();
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        metric.encode_histogram::<NoLabelSet>(sum, count, buckets, None)
    }

    fn seconds(&mut self, name: &str, help: &str, histogram: &engine::Histogram) -> fmt::Result {
        let bounds = histogram.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(histogram.counts.iter().copied()).collect();
        self.histogram(name, help, (&buckets, histogram.sum))
    }
}

fn write_engine(writer: &mut SnapshotWriter<'_>, stats: &engine::Stats) -> fmt::Result {
    for (name, help, value) in [
        ("requests_running", "Sequences being computed", stats.running),
        ("requests_waiting", "Jobs in the engine's queue", stats.waiting),
        ("kv_pages_total", "KV pages", stats.pages_total),
        ("kv_pages_free", "KV pages that no sequence holds", stats.pages_free),
        ("kv_pages_kept", "Free KV pages that hold prefixes for others to use", stats.pages_idle),
        ("adapters_running", "Adapters among the running sequences", stats.adapters_running),
        ("adapters_on_device", "Adapters in a GPU's memory", stats.on_device.len()),
        ("step_rows_max", "Rows of the largest step so far", stats.max_rows),
    ] {
        writer.gauge(name, help, value)?;
    }
    for (name, help, value) in [
        ("steps", "Steps computed", stats.steps),
        ("step_rows", "Rows of all steps", stats.step_rows_total),
        (
            "mixed_steps",
            "Steps of 8 rows or more, 4 adapters or more, prompts and answers",
            stats.mixed_steps,
        ),
        ("prompt_tokens", "Tokens of prompts taken in to their end", stats.prompt_tokens),
        (
            "cached_prompt_tokens",
            "Tokens of prompts, of each choice, that were computed before it began",
            stats.cached_tokens,
        ),
        ("generation_tokens", "Tokens generated", stats.generated_tokens),
        ("guessed_tokens", "Tokens guessed, and computed beside others", stats.guessed_tokens),
        ("foreseen_tokens", "Guessed tokens that were right", stats.foreseen_tokens),
        (
            "preemptions",
            "Sequences that lost their pages or their place to another",
            stats.preemptions,
        ),
        (
            "engine_restarts",
            "Times the engine panicked, gave up what it had begun, and began anew",
            stats.restarts,
        ),
        ("jobs_stopped", "Jobs that ended with a stop token", stats.ends.stop),
        ("jobs_exhausted", "Jobs that ended at their length", stats.ends.length),
        ("jobs_cancelled", "Jobs whose client went away or needed no more", stats.ends.cancelled),
        ("jobs_late", "Jobs whose deadline passed", stats.ends.deadline),
        ("jobs_failed", "Jobs whose step failed", stats.ends.step + stats.ends.not_a_number),
        ("jobs_unguided", "Jobs whose form took too much work to follow", stats.ends.guide),
    ] {
        writer.counter(name, help, value)?;
    }
    writer.seconds(
        "request_queue_time_seconds",
        "From submission to the first row",
        &stats.queue_seconds,
    )?;
    writer.seconds(
        "request_prefill_time_seconds",
        "From the first row to the prompt's end",
        &stats.prefill_seconds,
    )?;
    writer.seconds(
        "request_decode_time_seconds",
        "From the prompt's end to the answer's",
        &stats.decode_seconds,
    )?;
    writer.seconds("step_seconds", "From planning a step to having its tokens", &stats.step_seconds)
}

fn write_usage(writer: &mut SnapshotWriter<'_>, usage: &[(AccountLabels, Spent)]) -> fmt::Result {
    writer
        .used(("usage_requests", "Requests noted in the ledger"), usage, |spent| spent.requests)?;
    let help = "Tokens of prompts noted in the ledger";
    writer.used(("usage_prompt_tokens", help), usage, |spent| spent.prompt_tokens)?;
    let help = "Tokens of prompts that need not be computed, noted in the ledger";
    writer.used(("usage_cached_tokens", help), usage, |spent| spent.cached_tokens)?;
    let help = "Tokens generated, noted in the ledger";
    writer.used(("usage_generated_tokens", help), usage, |spent| spent.generated_tokens)?;
    let help = "Bytes of uploads that were kept, noted in the ledger";
    writer.used(("usage_upload_bytes", help), usage, |spent| spent.upload_bytes)
}

fn write_adapters(writer: &mut SnapshotWriter<'_>, stats: &adapter::CacheStats) -> fmt::Result {
    for (name, help, value) in [
        ("adapter_cache_budget_bytes", "Memory that adapters may take", stats.budget),
        ("adapter_resident_bytes", "Memory that loaded adapters take", stats.resident_bytes),
        ("adapter_loading_bytes", "Memory reserved for adapters being loaded", stats.loading_bytes),
        ("adapters_resident", "Loaded adapters", stats.resident),
        ("adapters_leased", "Loaded adapters that requests hold", stats.leased),
        ("adapters_loading", "Adapters being loaded", stats.loading),
        ("adapter_requests_waiting", "Requests waiting for an adapter", stats.waiting),
    ] {
        writer.gauge(name, help, value)?;
    }
    for (name, help, value) in [
        ("adapter_hits", "Requests lent an adapter at once", stats.hits),
        ("adapter_misses", "Requests that had to wait for an adapter", stats.misses),
        ("adapter_loads", "Adapter loads begun", stats.loads),
        (
            "adapter_reloads",
            "Adapter loads of what had been dropped a while ago: more memory would have saved them",
            stats.reloads,
        ),
        ("adapter_load_failures", "Adapter loads that failed", stats.load_failures),
        ("adapter_evictions", "Adapters dropped to make room", stats.evictions),
    ] {
        writer.counter(name, help, value)?;
    }
    let host = (stats.resident_bytes as u64, stats.resident as u64);
    let disk = (stats.known_bytes, stats.known as u64);
    let tiers = [("host", host), ("disk", disk)];
    writer.by_tier(
        "adapter_tier_bytes",
        "Bytes of adapters in memory, and of their files in the folder and the store",
        tiers.map(|(tier, (bytes, _))| (tier, bytes)),
    )?;
    writer.by_tier(
        "adapter_tier_adapters",
        "Adapters in memory, and all in the folder and the store; equal ones count once",
        tiers.map(|(tier, (_, adapters))| (tier, adapters)),
    )?;
    let load_seconds = (&*stats.load_seconds.buckets, stats.load_seconds.sum);
    writer.histogram("adapter_load_seconds", "How long adapter loads took", load_seconds)
}
