//! A request as spans of OpenTelemetry: one for what the client sees, in its own trace where it sends a `traceparent` (W3C Trace
//! Context); in that one for the answer; and in that one each for loading, waiting, the prompt and the tokens.
//!
//! They are made when the request is over, of the very numbers that its line in the log has. Names are those of OpenTelemetry's
//! semantic conventions for HTTP and for generative AI; our own begin with `chorus.`.

use std::time::{Instant, SystemTime};

use axum::http::HeaderMap;
use opentelemetry::{
    Array, Context, KeyValue, StringValue, Value,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{SpanKind, Status, TraceContextExt as _, Tracer as _},
};
use opentelemetry_sdk::{propagation::TraceContextPropagator, trace::SdkTracer};

use super::report::{Called, Summary, Times};

/// The header in which a client says which trace it has a request in.
const TRACEPARENT: &str = "traceparent";

/// The trace that a client has a request in, if it has.
#[derive(Clone, Debug)]
pub(super) struct Caught(Context);

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let value = self.0.get(key).filter(|_| key == TRACEPARENT)?;
        value.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT]
    }
}

impl Caught {
    /// By `traceparent` alone: `tracestate` is any text of others, and nobody here needs it.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let propagator = TraceContextPropagator::new();
        Self(propagator.extract_with_context(&Context::new(), &Headers(headers)))
    }
}

/// When what the clock of spans knows: they are told in the time of day.
struct Clock {
    instant: Instant,
    time: SystemTime,
}

impl Clock {
    fn at(&self, instant: Instant) -> SystemTime {
        self.time - self.instant.saturating_duration_since(instant)
    }
}

/// Tells a request, and in which trace; that is nowhere where it is not among those that are collected.
pub(super) fn tell(
    tracer: &SdkTracer,
    caught: Option<&Caught>,
    summary: &Summary<'_>,
) -> Option<String> {
    let outer = caught.map_or_else(Context::new, |Caught(context)| context.clone());
    let clock = Clock { instant: summary.ended, time: SystemTime::now() };
    let name = format!("{} {}", summary.method, summary.route);
    let span = tracer
        .span_builder(name)
        .with_kind(SpanKind::Server)
        .with_start_time(clock.at(summary.began))
        .with_attributes(of_request(summary))
        .start_with_context(tracer, &outer);
    let request = outer.with_span(span);
    let span = request.span();
    let told = span.span_context().clone();
    if told.is_sampled() {
        tell_answer(tracer, &request, &clock, summary);
    }
    if summary.status.is_some_and(|status| status >= 500) {
        span.set_status(Status::error(summary.error.unwrap_or_default()));
    }
    span.end_with_timestamp(clock.at(summary.ended));
    told.is_sampled().then(|| told.trace_id().to_string())
}

/// What the engine had to do with it, if anything.
fn tell_answer(tracer: &SdkTracer, request: &Context, clock: &Clock, summary: &Summary<'_>) {
    let Times { submitted, begun, first, last } = summary.times;
    let load = summary.load;
    let Some(from) = load.map(|(from, _)| from).or(submitted) else { return };
    let to = [load.map(|(_, to)| to), submitted, begun, first, last].into_iter().flatten().max();
    let operation = operation(summary.route);
    let model = summary.called.adapter.unwrap_or_default();
    let span = tracer
        .span_builder(format!("{operation} {model}"))
        .with_kind(SpanKind::Internal)
        .with_start_time(clock.at(from))
        .with_attributes(of_answer(summary, operation))
        .start_with_context(tracer, request);
    let answer = request.with_span(span);
    let steps = [
        ("load", load),
        ("queue", submitted.zip(begun)),
        ("prefill", begun.zip(first)),
        ("decode", first.zip(last)),
    ];
    for (name, between) in steps {
        let Some((from, to)) = between else { continue };
        let builder = tracer.span_builder(name).with_start_time(clock.at(from));
        let step = answer.with_span(builder.start_with_context(tracer, &answer));
        step.span().end_with_timestamp(clock.at(to));
    }
    answer.span().end_with_timestamp(clock.at(to.unwrap_or(from)));
}

fn of_request(summary: &Summary<'_>) -> Vec<KeyValue> {
    let mut all = vec![
        KeyValue::new("http.request.method", summary.method),
        KeyValue::new("http.route", summary.route.to_owned()),
        KeyValue::new("chorus.end", summary.end),
    ];
    let status = summary.status.map(i64::from);
    all.extend(status.map(|status| KeyValue::new("http.response.status_code", status)));
    all.extend(summary.error.map(|code| KeyValue::new("error.type", code)));
    all.extend(summary.id.map(|id| KeyValue::new("chorus.request.id", id.to_owned())));
    all.extend(summary.tenant.map(|name| KeyValue::new("chorus.tenant", name.to_owned())));
    all
}

fn of_answer(summary: &Summary<'_>, operation: &'static str) -> Vec<KeyValue> {
    let Called { adapter, version, digest, mix } = &summary.called;
    let mut all = vec![
        KeyValue::new("gen_ai.operation.name", operation),
        KeyValue::new("gen_ai.provider.name", "chorus"),
    ];
    if let Some(name) = adapter {
        all.push(KeyValue::new("gen_ai.request.model", (*name).to_owned()));
        let exact =
            version.map_or_else(|| (*name).to_owned(), |version| format!("{name}@v{version}"));
        all.push(KeyValue::new("gen_ai.response.model", exact));
        all.push(KeyValue::new("chorus.adapter", (*name).to_owned()));
    }
    all.extend(version.map(|version| KeyValue::new("chorus.adapter.version", i64::from(version))));
    let texts = [("chorus.adapter.digest", digest), ("chorus.adapter.mix", mix)];
    all.extend(texts.into_iter().filter_map(|(key, text)| Some(KeyValue::new(key, text.clone()?))));
    if let Some(spent) = &summary.spent {
        let count = |tokens| i64::try_from(tokens).unwrap_or(i64::MAX);
        all.extend([
            KeyValue::new("gen_ai.usage.input_tokens", count(spent.prompt_tokens)),
            KeyValue::new("gen_ai.usage.cache_read.input_tokens", count(spent.cached_tokens)),
            KeyValue::new("gen_ai.usage.output_tokens", count(spent.generated_tokens)),
        ]);
    }
    if !summary.finishes.is_empty() {
        let reasons = summary.finishes.iter().map(|reason| StringValue::from(*reason)).collect();
        let reasons = Value::Array(Array::String(reasons));
        all.push(KeyValue::new("gen_ai.response.finish_reasons", reasons));
    }
    all
}

/// What the conventions call what a route does.
fn operation(route: &str) -> &'static str {
    match route {
        "/v1/embeddings" => "embeddings",
        "/v1/completions" | "/generate" | "/generate_stream" | "/" => "text_completion",
        _ => "chat",
    }
}
