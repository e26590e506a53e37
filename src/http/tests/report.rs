//! What the log says of requests.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use tracing::subscriber::{DefaultGuard, set_default};

use opentelemetry::Value as Told;
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{SpanData, SpanExporter},
};

use super::{
    super::{
        app::Settings,
        double::{Play, app, app_with, begun, ids},
    },
    *,
};
use crate::{
    engine::{Event, Failure, Finish},
    telemetry::{self, traces::Traces},
    tenant::{Scope, TenantName},
};

/// What this thread logs from here on.
struct Captured {
    bytes: Arc<Mutex<Vec<u8>>>,
    _until: DefaultGuard,
}

struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Captured {
    fn begin(filter: &str) -> Self {
        let bytes = Arc::<Mutex<Vec<u8>>>::default();
        let sink = Arc::clone(&bytes);
        let subscriber = telemetry::json(filter, move || Sink(Arc::clone(&sink)));
        Self { bytes, _until: set_default(subscriber) }
    }

    fn text(&self) -> String {
        String::from_utf8(self.bytes.lock().unwrap().clone()).unwrap()
    }

    /// The lines of requests since the last call.
    fn lines(&self) -> Vec<Value> {
        let text = self.text();
        self.bytes.lock().unwrap().clear();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["target"] == "chorus::request").collect()
    }

    fn line(&self) -> Value {
        let mut lines = self.lines();
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines.remove(0)
    }
}

/// A prompt of which four tokens were at hand, and an answer of so many bytes.
fn answer(text: &str, last: Event) -> Vec<Event> {
    let tokens = ids(text).into_iter().map(|id| Event::Token { id, logprob: None });
    [begun(4)].into_iter().chain(tokens).chain([last]).collect()
}

fn said(text: &str) -> Play {
    Play::Events(answer(text, Event::Finished(Finish::Stop)))
}

const TIMES: [&str; 5] = ["load_ms", "queue_ms", "prefill_ms", "decode_ms", "total_ms"];

#[tokio::test]
async fn a_request_has_one_line_that_tells_what_it_was_and_took() {
    let log = Captured::begin("info");
    let (app, _) = app([said("abc"), said("abc")]);
    let response = send(&app, post(CHAT, &chat(json!({"model": "sql"})))).await;
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let digest = response.headers()["x-chorus-adapter"].to_str().unwrap().to_owned();
    assert!(log.lines().is_empty(), "it is not over yet");
    let _ = body(response).await;
    let line = log.line();
    let prompt = "user:hi\nassistant:".len();
    for (field, value) in [
        ("level", json!("INFO")),
        ("message", json!("answered")),
        ("id", json!(id)),
        ("method", json!("POST")),
        ("route", json!(CHAT)),
        ("status", json!(200)),
        ("end", json!("complete")),
        ("tenant", json!("default")),
        ("adapter", json!("sql")),
        ("version", json!(1)),
        ("prompt_tokens", json!(prompt)),
        ("cached_tokens", json!(4)),
        ("completion_tokens", json!(3)),
        ("finish", json!("stop")),
    ] {
        assert_eq!(line[field], value, "{field} of {line}");
    }
    let short = line["digest"].as_str().unwrap();
    assert!(short.len() == 12 && digest.contains(&format!("sha256={short}")), "{digest}: {line}");
    assert!(TIMES.iter().all(|time| line[time].as_f64().unwrap() >= 0.0), "{line}");
    assert!(
        (line["queue_ms"].as_f64().unwrap() - 0.01).abs() < 1e-9,
        "as the engine has it: {line}"
    );
    let sum: f64 = TIMES[..4].iter().map(|time| line[time].as_f64().unwrap()).sum();
    assert!(sum <= line["total_ms"].as_f64().unwrap() + 0.02, "{line}");
    // The base has neither, and nothing to wait for.
    let _ = ask(&app, CHAT, chat(json!({}))).await;
    let line = log.line();
    assert_eq!(line["adapter"], "base");
    assert!(["version", "digest", "mix", "load_ms", "error"].iter().all(|f| line[f].is_null()));
}

#[tokio::test]
async fn nothing_that_is_secret_is_logged_at_any_level() {
    let log = Captured::begin("trace");
    let (app, _) =
        app([said("abc"), Play::Events(answer("ANSWERED", Event::Failed(Failure::Step)))]);
    let name = TenantName::parse("acme").unwrap();
    let operator = app.tenants().create("me", &name).await.unwrap().operator.unwrap();
    let (key, _) = app.tenants().add_key("me", &name, Scope::Infer, None).await.unwrap();
    let prompt = json!({"messages": [{"role": "user", "content": "PROMPTED"}], "user": "SOMEBODY"});
    for stream in [false, true] {
        let request = post(CHAT, &chat(merge(prompt.clone(), json!({"stream": stream}))));
        let request = with_header(request, "authorization", &format!("Bearer {}", key.reveal()));
        let request = with_header(request, "x-request-id", "THEIRS");
        let request = with_header(request, "cookie", "COOKIE");
        let _ = text(send(&app, request).await).await;
    }
    for wrong in ["GUESSED", operator.reveal()] {
        let request = with_header(post(CHAT, &chat(prompt.clone())), "x-api-key", wrong);
        let request = with_header(request, "x-adapter", "NOBODY");
        let _ = text(send(&app, request).await).await;
    }
    let mut strange = Request::get("/v1/SECRETS?key=QUERY").header(HOST, "localhost");
    strange = strange.method("METHOD");
    let _ = text(send(&app, strange.body(Body::empty()).unwrap()).await).await;
    let logged = log.text();
    for secret in [
        key.reveal(),
        operator.reveal(),
        "PROMPTED",
        "ANSWERED",
        "abc\"",
        "SOMEBODY",
        "THEIRS",
        "COOKIE",
        "GUESSED",
        "NOBODY",
        "SECRETS",
        "QUERY",
        "METHOD",
    ] {
        assert!(!logged.contains(secret), "{secret} is in\n{logged}");
    }
    let lines = log.lines();
    assert_eq!(lines.len(), 5);
    assert_eq!((&lines[0]["tenant"], &lines[0]["finish"]), (&json!("acme"), &json!("stop")));
    assert_eq!((&lines[1]["end"], &lines[1]["finish"]), (&json!("complete"), &json!("step")));
    assert_eq!((&lines[2]["status"], &lines[2]["error"]), (&json!(401), &json!("invalid_api_key")));
    assert_eq!(lines[3]["tenant"], Value::Null, "the operator is no tenant");
    assert_eq!((&lines[4]["route"], &lines[4]["method"]), (&json!("other"), &json!("other")));
}

#[tokio::test]
async fn a_stream_is_logged_when_it_ends_or_is_cut() {
    let log = Captured::begin("info");
    let (app, engine) = app([said("abc"), Play::Hang(vec![begun(0)]), Play::hang("")]);
    let stream = || post(CHAT, &chat(json!({"stream": true})));
    let response = send(&app, stream()).await;
    assert!(log.lines().is_empty());
    events(response).await;
    let line = log.line();
    assert_eq!((&line["end"], &line["completion_tokens"]), (&json!("complete"), &json!(3)));
    // The client leaves in the midst of it.
    let waiting = tokio::time::timeout(Duration::from_millis(50), send(&app, stream()));
    assert!(waiting.await.is_err(), "nothing has come yet");
    until(|| engine.wanted() == 0).await;
    let line = log.line();
    assert_eq!((&line["end"], &line["status"]), (&json!("cut"), &Value::Null), "{line}");
    assert_eq!((&line["completion_tokens"], &line["finish"]), (&json!(0), &Value::Null));
    assert!(line["queue_ms"].is_number() && line["prefill_ms"].is_null(), "{line}");
}

#[tokio::test]
async fn a_stream_whose_client_leaves_says_how_far_it_was() {
    let log = Captured::begin("info");
    let mut events = answer("ab", Event::Finished(Finish::Stop));
    events.pop();
    let (app, _) = app([Play::Hang(events)]);
    let response = send(&app, post(CHAT, &chat(json!({"stream": true})))).await;
    let mut data = response.into_body().into_data_stream();
    for _ in 0..3 {
        let _ = futures_util::StreamExt::next(&mut data).await.unwrap().unwrap();
    }
    assert!(log.lines().is_empty());
    drop(data);
    let line = log.line();
    assert_eq!((&line["end"], &line["status"]), (&json!("cut"), &json!(200)), "{line}");
    assert_eq!(line["completion_tokens"], 2);
    assert!(line["prefill_ms"].is_number() && line["finish"].is_null(), "{line}");
}

#[tokio::test]
async fn what_generates_nothing_has_a_short_line_and_probes_have_none() {
    let log = Captured::begin("info");
    let (app, _) = app([]);
    let _ = text(get(&app, "/v1/models/sql").await).await;
    let line = log.line();
    let all = line.as_object().unwrap();
    let fields: Vec<_> =
        all.keys().filter(|key| !["timestamp", "level"].contains(&&***key)).collect();
    let expected =
        ["message", "id", "method", "route", "status", "end", "tenant", "total_ms", "target"];
    assert_eq!(fields, expected, "{line}");
    assert_eq!(line["route"], "/v1/models/{*id}");
    for path in ["/health", "/ping", "/ready", "/metrics"] {
        let _ = text(get(&app, path).await).await;
        assert!(log.lines().is_empty(), "{path}");
    }
    app.drain();
    let _ = text(get(&app, "/ready").await).await;
    let line = log.line();
    assert_eq!((&line["status"], &line["error"]), (&json!(503), &json!("overloaded")));
    let head = Request::head("/v1/models").header(HOST, "localhost");
    let head = head.body(Body::empty()).unwrap();
    let _ = text(send(&app, head).await).await;
    assert_eq!(log.line()["end"], "complete");
}

#[tokio::test]
async fn a_mix_is_told_by_its_parts_and_several_choices_in_one_line() {
    let log = Captured::begin("info");
    let exhausted = Play::Events(answer("abcd", Event::Finished(Finish::Length)));
    let (app, _) = app([said("ab"), exhausted]);
    let adapters = json!([{"name": "sql", "weight": 0.5}, {"name": "law", "weight": 0.25}]);
    let (status, answer) = ask(&app, CHAT, chat(json!({"adapters": adapters, "n": 2}))).await;
    assert_eq!(status, 200, "{answer}");
    let line = log.line();
    assert_eq!((&line["adapter"], &line["finish"]), (&json!("(mixes)"), &json!("stop,length")));
    let mix = line["mix"].as_str().unwrap();
    let parts: Vec<Vec<_>> = mix.split(',').map(|part| part.split(';').collect()).collect();
    assert_eq!((parts[0][0], parts[0][2]), ("sql@v1", "0.5"));
    assert_eq!((parts[1][0], parts[1][1].len(), parts[1][2]), ("law@v1", 12, "0.25"));
    assert_eq!(line["completion_tokens"], 6);
    assert_eq!(line["cached_tokens"], 4, "of the first choice of a prompt");
}

/// The spans that were told.
#[derive(Clone, Debug, Default)]
struct Collected(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Collected {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(batch);
        Ok(())
    }
}

impl Collected {
    fn settings(&self) -> Settings {
        Settings { tracer: Some(Traces::with(self.clone()).tracer()), ..Settings::default() }
    }

    fn take(&self) -> Vec<SpanData> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

fn of<'a>(span: &'a SpanData, key: &str) -> Option<&'a Told> {
    span.attributes.iter().find(|known| known.key.as_str() == key).map(|known| &known.value)
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

#[tokio::test]
async fn a_request_is_told_as_spans_in_the_trace_of_its_client() {
    let (log, collected) = (Captured::begin("info"), Collected::default());
    let (app, _) = app_with([said("xyz")], collected.settings());
    let mut request = post(CHAT, &chat(json!({"model": "sql"})));
    let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
    request.headers_mut().insert("traceparent", parent.parse().unwrap());
    request.headers_mut().insert("tracestate", "vendor=theirs".parse().unwrap());
    assert_eq!(send(&app, request).await.status(), 200);
    until(|| !collected.0.lock().unwrap().is_empty()).await;
    let spans = collected.take();
    let names: Vec<_> = spans.iter().map(|span| &*span.name).collect();
    let request = "POST /v1/chat/completions";
    assert_eq!(names, ["load", "queue", "prefill", "decode", "chat sql", request]);
    assert!(spans.iter().all(|span| span.span_context.trace_id().to_string() == TRACE));
    let [load, _, prefill, decode, answer, whole] = &spans[..] else { panic!("there are six") };
    assert_eq!(whole.parent_span_id.to_string(), "b7ad6b7169203331");
    assert_eq!(answer.parent_span_id, whole.span_context.span_id());
    assert!(spans[..4].iter().all(|span| span.parent_span_id == answer.span_context.span_id()));
    assert!(whole.start_time <= answer.start_time && answer.end_time <= whole.end_time);
    assert!(load.start_time == answer.start_time && decode.end_time == answer.end_time);
    assert_eq!(prefill.end_time, decode.start_time);
    assert_eq!(of(whole, "http.response.status_code"), Some(&Told::I64(200)));
    assert_eq!(of(whole, "chorus.tenant"), Some(&"default".into()));
    for (key, value) in [
        ("gen_ai.operation.name", "chat".into()),
        ("gen_ai.request.model", "sql".into()),
        ("gen_ai.response.model", "sql@v1".into()),
        ("gen_ai.usage.output_tokens", Told::I64(3)),
        ("gen_ai.usage.cache_read.input_tokens", Told::I64(4)),
    ] {
        assert_eq!(of(answer, key), Some(&value), "{key}");
    }
    assert_eq!(log.line()["trace"], TRACE);
    let all = format!("{spans:?}");
    assert!(!all.contains("xyz") && !all.contains("Hello") && !all.contains("theirs"), "{all}");
}

#[tokio::test]
async fn what_never_reached_the_engine_is_one_span_and_probes_are_none() {
    let (log, collected) = (Captured::begin("info"), Collected::default());
    let (app, _) = app_with([], collected.settings());
    let (status, _) = ask(&app, CHAT, chat(json!({"model": "nobodys"}))).await;
    assert_eq!(status, 404);
    let spans = collected.take();
    assert_eq!((spans.len(), &*spans[0].name), (1, "POST /v1/chat/completions"));
    assert_eq!(of(&spans[0], "error.type"), Some(&"model_not_found".into()));
    assert_eq!(log.line()["trace"], spans[0].span_context.trace_id().to_string());
    let _ = text(get(&app, "/ready").await).await;
    assert!(collected.take().is_empty());
    // A client that does not want it collected.
    let mut request = post(CHAT, &chat(json!({"model": "nobodys"})));
    let parent = format!("00-{TRACE}-b7ad6b7169203331-00");
    request.headers_mut().insert("traceparent", parent.parse().unwrap());
    let _ = text(send(&app, request).await).await;
    assert!(collected.take().is_empty() && log.line().get("trace").is_none());
    // What is no trace begins a new one.
    let mut request = post(CHAT, &chat(json!({"model": "nobodys"})));
    request.headers_mut().insert("traceparent", "00-0-0-01".parse().unwrap());
    let _ = text(send(&app, request).await).await;
    assert_eq!(collected.take().len(), 1);
}
