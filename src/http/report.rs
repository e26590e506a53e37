//! One line in the log for each request: what was asked for, what came of it, and how long each part of that took. The same
//! as [`spans`], where the operator collects these.
//!
//! It is written when the answer is over: when its last bytes have been taken by the connection (`end=complete`), or when it
//! is given up before, because the client or the server has gone (`end=cut`; without a status where there was no answer yet). Streams are no
//! exception. What it tells is counted for the ledger and measured for the metrics anyway.
//!
//! Nothing that a client has written is in it, but for the name of an adapter that there is: no key, no prompt, no answer, no path,
//! and no id but our own.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::{MatchedPath, Request, State},
    http::Method,
    middleware::Next,
    response::Response,
};
use bytes::Bytes;
use hyper::body::{Body as _, Frame, SizeHint};

use super::{
    app::App,
    error::ApiError,
    gateway::short,
    request_id::RequestId,
    select::Voice,
    spans::{self, Caught},
    tally::{Counts, MIXES},
};
use crate::{
    adapter::Revision,
    ledger::Spent,
    tenant::{Caller, Right, TenantId},
};

/// What the lines are filtered by.
const TARGET: &str = "chorus::request";
/// Asked for every few seconds: where they are answered as they should be, nobody wants to read of it.
const PROBES: [&str; 4] = ["/health", "/ping", "/ready", "/metrics"];
/// A method or path that is none of ours.
const OTHER: &str = "other";

/// What is known of a request so far. Clones tell the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Report(Arc<Mutex<Facts>>);

#[derive(Debug, Default)]
struct Facts {
    tenant: Option<TenantId>,
    voice: Option<Voice>,
    counts: Option<Arc<Counts>>,
    /// Why its choices have ended, each reason once.
    finishes: Vec<&'static str>,
    /// From when to when it waited for its adapters.
    load: Option<(Instant, Instant)>,
    times: Times,
}

/// When things happened to a choice, or first and last to any of them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    pub(super) submitted: Option<Instant>,
    /// Its first rows were in a step.
    pub(super) begun: Option<Instant>,
    /// Its first token, or its vector, was there.
    pub(super) first: Option<Instant>,
    /// The latest thing happened.
    pub(super) last: Option<Instant>,
}

impl Times {
    fn and(self, other: Self) -> Self {
        let earlier = |a: Option<Instant>, b: Option<Instant>| a.into_iter().chain(b).min();
        Self {
            submitted: earlier(self.submitted, other.submitted),
            begun: earlier(self.begun, other.begun),
            first: earlier(self.first, other.first),
            last: self.last.max(other.last),
        }
    }
}

impl Report {
    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.0.lock().expect("nothing that is done under it panics")
    }

    /// Who asks. The operator's key is no tenant's.
    pub(super) fn asked_by(&self, caller: &Caller) {
        if caller.right != Right::Operator {
            self.facts().tenant = Some(caller.tenant);
        }
    }

    /// Who answers: waits until what it runs through is lent.
    pub(super) async fn lending<T>(&self, voice: &Voice, lending: impl Future<Output = T>) -> T {
        self.facts().voice = Some(voice.clone());
        let since = Instant::now();
        let lent = lending.await;
        if *voice != Voice::Base {
            self.facts().load = Some((since, Instant::now()));
        }
        lent
    }

    /// Where its tokens are counted.
    pub(super) fn counted_in(&self, counts: &Arc<Counts>) {
        self.facts().counts = Some(Arc::clone(counts));
    }

    /// A choice has ended.
    pub(super) fn finished(&self, why: &'static str) {
        let mut facts = self.facts();
        if !facts.finishes.contains(&why) {
            facts.finishes.push(why);
        }
    }

    /// One of its jobs is over.
    pub(super) fn took(&self, times: Times) {
        let mut facts = self.facts();
        facts.times = facts.times.and(times);
    }
}

/// Has a line written for each request, whatever becomes of it.
pub(super) async fn layer(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let report = Report::default();
    let mut line = Line::begin(app, &request, report.clone());
    request.extensions_mut().insert(report);
    let response = next.run(request).await;
    line.status = Some(response.status().as_u16());
    line.refusal = response.extensions().get::<ApiError>().map(ApiError::word);
    line.complete |= response.body().is_end_stream();
    response.map(|body| Body::new(Told { body, line }))
}

/// A body whose line is written when it is dropped. The body goes first, and with it what still runs for it.
struct Told {
    body: Body,
    line: Line,
}

impl hyper::body::Body for Told {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none() || self.body.is_end_stream() {
            self.line.complete = true;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Is written when it is dropped.
struct Line {
    app: App,
    report: Report,
    id: Option<RequestId>,
    method: &'static str,
    /// As it is declared, never as it was asked for.
    route: Option<MatchedPath>,
    began: Instant,
    /// The trace that its client has it in.
    caught: Option<Caught>,
    /// There is none yet where the request is given up.
    status: Option<u16>,
    refusal: Option<&'static str>,
    complete: bool,
}

/// All that is known of a request in the end.
pub(super) struct Summary<'a> {
    pub(super) id: Option<&'a str>,
    pub(super) method: &'static str,
    pub(super) route: &'a str,
    pub(super) status: Option<u16>,
    /// The code of a refusal.
    pub(super) error: Option<&'static str>,
    /// Whether its answer was taken to the end: `complete`, or `cut`.
    pub(super) end: &'static str,
    pub(super) tenant: Option<&'a str>,
    pub(super) called: Called<'a>,
    pub(super) spent: Option<Spent>,
    /// Why its choices have ended, each reason once.
    pub(super) finishes: &'a [&'static str],
    pub(super) load: Option<(Instant, Instant)>,
    pub(super) times: Times,
    pub(super) began: Instant,
    pub(super) ended: Instant,
}

impl Line {
    fn begin(app: App, request: &Request, report: Report) -> Self {
        let traced = app.settings().tracer.is_some();
        Self {
            app,
            report,
            id: request.extensions().get().cloned(),
            method: known(request.method()),
            route: request.extensions().get().cloned(),
            began: Instant::now(),
            caught: traced.then(|| Caught::of(request.headers())),
            status: None,
            refusal: None,
            // Nobody takes a body then.
            complete: request.method() == Method::HEAD,
        }
    }

    fn write(&self) {
        let facts = self.report.facts();
        let tenant = facts.tenant.and_then(|id| self.app.tenants().name(id)).map(String::from);
        let summary = Summary {
            id: self.id.as_ref().map(RequestId::as_str),
            method: self.method,
            route: self.route.as_ref().map_or(OTHER, MatchedPath::as_str),
            status: self.status,
            error: self.refusal,
            end: if self.complete { "complete" } else { "cut" },
            tenant: tenant.as_deref(),
            called: called(facts.voice.as_ref()),
            spent: facts.counts.as_ref().map(|counts| counts.so_far()),
            finishes: &facts.finishes,
            load: facts.load,
            times: facts.times,
            began: self.began,
            ended: Instant::now(),
        };
        if summary.is_a_probe() {
            return summary.log_briefly();
        }
        let tracer = self.app.settings().tracer.as_ref();
        let trace = tracer.and_then(|tracer| spans::tell(tracer, self.caught.as_ref(), &summary));
        summary.log(trace.as_deref());
    }
}

impl Summary<'_> {
    /// Whether it was asked by a machine that watches, and is answered as it should be.
    fn is_a_probe(&self) -> bool {
        PROBES.contains(&self.route) && self.status.is_some_and(|status| status < 400)
    }

    fn log_briefly(&self) {
        let Self { id, method, route, status, end, began, ended, .. } = *self;
        let total_ms = millis(ended - began);
        tracing::debug!(target: TARGET, parent: None, id, method, route, status, end, total_ms, "answered");
    }

    /// `trace` is the id of the trace that has its spans.
    fn log(&self, trace: Option<&str>) {
        let Self { id, method, route, status, end, error, tenant, .. } = *self;
        let Called { adapter, version, ref digest, ref mix } = self.called;
        let (digest, mix) = (digest.as_deref(), mix.as_deref());
        let (prompt_tokens, cached_tokens, completion_tokens) = (
            self.spent.map(|spent| spent.prompt_tokens),
            self.spent.map(|spent| spent.cached_tokens),
            self.spent.map(|spent| spent.generated_tokens),
        );
        let finish = (!self.finishes.is_empty()).then(|| self.finishes.join(","));
        let finish = finish.as_deref();
        let Times { submitted, begun, first, last } = self.times;
        let load_ms = self.load.map(|(from, to)| millis(to - from));
        let (queue_ms, prefill_ms) = (between(submitted, begun), between(begun, first));
        let (decode_ms, total_ms) = (between(first, last), millis(self.ended - self.began));
        tracing::info!(
            target: TARGET, parent: None,
            id, trace, method, route, status, end, error, tenant, adapter, version, digest, mix,
            prompt_tokens, cached_tokens, completion_tokens, finish,
            load_ms, queue_ms, prefill_ms, decode_ms, total_ms,
            "answered"
        );
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.write();
    }
}

/// What who answers is called.
#[derive(Default)]
pub(super) struct Called<'a> {
    pub(super) adapter: Option<&'a str>,
    pub(super) version: Option<u32>,
    pub(super) digest: Option<String>,
    /// The parts, each with its version, its digest and how much of it there is.
    pub(super) mix: Option<String>,
}

fn called(voice: Option<&Voice>) -> Called<'_> {
    match voice {
        None => Called::default(),
        Some(Voice::Base) => Called { adapter: Some("base"), ..Called::default() },
        Some(Voice::Adapter(Revision { name, version, digest })) => Called {
            adapter: Some(name.as_str()),
            version: Some(*version),
            digest: Some(short(digest)),
            mix: None,
        },
        Some(Voice::Mix(parts)) => {
            let part = |(revision, weight): &(Revision, f32)| {
                let Revision { name, version, digest } = revision;
                format!("{name}@v{version};{};{weight}", short(digest))
            };
            let parts: Vec<_> = parts.iter().map(part).collect();
            Called { adapter: Some(MIXES), mix: Some(parts.join(",")), ..Called::default() }
        }
    }
}

/// A method that is known: others may be any text.
fn known(method: &Method) -> &'static str {
    let methods = [
        (Method::GET, "GET"),
        (Method::HEAD, "HEAD"),
        (Method::POST, "POST"),
        (Method::PUT, "PUT"),
        (Method::DELETE, "DELETE"),
        (Method::OPTIONS, "OPTIONS"),
        (Method::PATCH, "PATCH"),
    ];
    methods.iter().find(|(known, _)| known == method).map_or(OTHER, |(_, name)| name)
}

fn between(from: Option<Instant>, to: Option<Instant>) -> Option<f64> {
    Some(millis(to?.saturating_duration_since(from?)))
}

/// To the microsecond.
fn millis(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}
