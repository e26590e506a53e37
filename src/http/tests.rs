//! Whole requests through the router, against an engine that follows a script.

use std::time::Duration;

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, StatusCode, header::HOST},
    response::Response,
};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::{
    app::{App, Settings},
    double::{self, Play, Scripted, app, app_with, ids},
    guard::{Guard, Reach},
};
use crate::engine::{Event, Failure, Finish, Refused};

fn router(app: App) -> Router {
    app.router(Guard::new(Reach::Loopback, vec![]))
}

async fn send(app: &App, request: Request<Body>) -> Response {
    router(app.clone()).oneshot(request).await.unwrap()
}

async fn get(app: &App, path: &str) -> Response {
    send(app, Request::get(path).header(HOST, "localhost").body(Body::empty()).unwrap()).await
}

fn post(path: &str, body: &Value) -> Request<Body> {
    Request::post(path)
        .header(HOST, "127.0.0.1:8080")
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
        .unwrap()
}

fn with_header(mut request: Request<Body>, name: &'static str, value: &str) -> Request<Body> {
    request.headers_mut().append(name, value.parse().unwrap());
    request
}

async fn text(response: Response) -> String {
    let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn body(response: Response) -> Value {
    serde_json::from_str(&text(response).await).unwrap()
}

/// Status and body of a chat or completion.
async fn ask(app: &App, path: &str, request: Value) -> (u16, Value) {
    let response = send(app, post(path, &request)).await;
    (response.status().as_u16(), body(response).await)
}

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// A chat of one message with these fields besides.
fn chat(more: Value) -> Value {
    merge(json!({"model": "base", "messages": [{"role": "user", "content": "hi"}]}), more)
}

fn completion(more: Value) -> Value {
    merge(json!({"model": "base", "prompt": "once"}), more)
}

fn merge(mut to: Value, more: Value) -> Value {
    let Value::Object(more) = more else { panic!("fields are an object") };
    to.as_object_mut().unwrap().extend(more);
    to
}

/// The data of a stream's events, the last of which is checked and left out.
async fn events(response: Response) -> Vec<Value> {
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = text(response).await;
    let mut data: Vec<_> = text
        .split("\n\n")
        .filter(|event| !event.is_empty())
        .map(|event| event.strip_prefix("data: ").unwrap())
        .collect();
    assert_eq!(data.pop(), Some("[DONE]"));
    data.into_iter().map(|json| serde_json::from_str(json).unwrap()).collect()
}

fn error_code(body: &Value) -> &str {
    body["error"]["code"].as_str().unwrap_or("-")
}

#[tokio::test]
async fn a_chat_is_answered_whole() {
    let (app, engine) = app([Play::say("hey \u{20ac}")]);
    let response = send(&app, post(CHAT, &chat(json!({"model": "org/tiny", "seed": 3})))).await;
    assert_eq!(response.headers()["x-chorus-adapter"], "base");
    assert!(response.headers().contains_key("x-request-id"));
    let answer = body(response).await;
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(answer["system_fingerprint"].as_str().unwrap().starts_with("fp_"));
    assert_eq!(
        (&answer["object"], &answer["model"]),
        (&json!("chat.completion"), &json!("org/tiny"))
    );
    assert_eq!(
        answer["choices"],
        json!([{"index": 0, "logprobs": null, "finish_reason": "stop",
            "message": {"role": "assistant", "content": "hey \u{20ac}", "refusal": null}}])
    );
    let prompt = ids("user:hi\nassistant:");
    assert_eq!(
        answer["usage"],
        json!({"prompt_tokens": prompt.len(), "completion_tokens": 7, "total_tokens": prompt.len() + 7})
    );
    let [job] = &engine.jobs()[..] else { panic!("one job") };
    assert_eq!((&job.prompt, job.sampling.seed), (&prompt, 3));
    assert_eq!(job.max_tokens, double::CONTEXT - prompt.len());
    assert_eq!(&*job.stop_tokens, [double::SPECIAL]);
    assert!(job.deadline.is_some() && job.logprobs.is_none());
}

#[tokio::test]
async fn a_chat_is_streamed() {
    let (app, _) = app([Play::say("h\u{20ac}!")]);
    let wish = json!({"stream": true, "stream_options": {"include_usage": true}});
    let events = events(send(&app, post(CHAT, &chat(wish))).await).await;
    for event in &events {
        assert_eq!(event["object"], "chat.completion.chunk");
        for key in ["id", "created", "model", "system_fingerprint"] {
            assert_eq!(event[key], events[0][key]);
        }
    }
    let deltas: Vec<_> = events.iter().map(|e| (&e["choices"][0]["delta"], &e["usage"])).collect();
    let null = Value::Null;
    assert_eq!(
        deltas,
        [
            (&json!({"role": "assistant", "content": ""}), &null),
            (&json!({"content": "h"}), &null),
            (&json!({"content": "\u{20ac}"}), &null),
            (&json!({"content": "!"}), &null),
            (&json!({}), &null),
            (&null, &json!({"prompt_tokens": 18, "completion_tokens": 5, "total_tokens": 23})),
        ]
    );
    let reasons: Vec<_> = events.iter().map(|e| &e["choices"][0]["finish_reason"]).collect();
    assert_eq!(reasons, [&null, &null, &null, &null, &json!("stop"), &null]);
    assert_eq!(events.last().unwrap()["choices"], json!([]));
}

#[tokio::test]
async fn usage_is_no_key_of_chunks_unless_it_is_asked_for() {
    for (path, request) in
        [(CHAT, chat(json!({"stream": true}))), (COMPLETIONS, completion(json!({"stream": true})))]
    {
        let (app, _) = app([]);
        let events = events(send(&app, post(path, &request)).await).await;
        assert!(events.iter().all(|event| event.get("usage").is_none()), "{path}");
    }
}

#[tokio::test]
async fn a_failure_in_a_stream_is_an_event() {
    let (app, _) = app([Play::fail("h", Failure::Step), Play::hang("x")]);
    let wish = chat(json!({"stream": true, "n": 2}));
    let events = events(send(&app, post(CHAT, &wish)).await).await;
    let last = events.last().unwrap();
    assert_eq!(error_code(last), "internal_error");
    assert_eq!(last["error"]["type"], "server_error");
}

#[tokio::test]
async fn a_failure_before_the_first_token_is_a_status() {
    for wish in [json!({"stream": true}), json!({})] {
        let (app, _) = app([Play::fail("", Failure::Deadline)]);
        let response = send(&app, post(CHAT, &chat(wish))).await;
        assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(response.headers()["x-should-retry"], "false");
        assert_eq!(error_code(&body(response).await), "deadline_exceeded");
    }
}

#[tokio::test]
async fn a_failure_of_one_choice_fails_a_whole_answer() {
    let (app, engine) = app([Play::hang("a"), Play::fail("b", Failure::NotANumber)]);
    let (status, answer) = ask(&app, CHAT, chat(json!({"n": 2}))).await;
    assert_eq!((status, error_code(&answer)), (500, "internal_error"));
    assert_eq!(engine.wanted(), 0);
}

#[tokio::test]
async fn stop_strings_end_an_answer_and_its_job() {
    let (app, engine) = app([Play::hang("one END two")]);
    let (status, answer) = ask(&app, CHAT, chat(json!({"stop": "END"}))).await;
    assert_eq!(status, 200);
    assert_eq!(answer["choices"][0]["message"]["content"], "one ");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(engine.wanted(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_jobs() {
    let (app, engine) = app([Play::hang("a"), Play::hang("b")]);
    let response = send(&app, post(CHAT, &chat(json!({"stream": true, "n": 2})))).await;
    assert_eq!(engine.wanted(), 2);
    drop(response);
    assert_eq!(engine.wanted(), 0);
    let (app, engine) = self::app([Play::hang("a")]);
    let whole = send(&app, post(CHAT, &chat(json!({}))));
    assert!(tokio::time::timeout(Duration::from_millis(50), whole).await.is_err());
    assert_eq!((engine.jobs().len(), engine.wanted()), (1, 0));
}

#[tokio::test]
async fn chat_scores_have_their_shape() {
    let request = chat(json!({"logprobs": true, "top_logprobs": 1, "stream": true}));
    let (app, engine) = app([Play::say("ab")]);
    let events = events(send(&app, post(CHAT, &request)).await).await;
    assert_eq!(engine.jobs()[0].logprobs, Some(1));
    assert_eq!(
        events[2]["choices"][0]["logprobs"],
        json!({"refusal": null, "content": [{"token": "b", "bytes": [98], "logprob": -2.0,
            "top_logprobs": [{"token": "b", "bytes": [98], "logprob": -2.0}]}]})
    );
}

#[tokio::test]
async fn several_prompts_and_choices_are_numbered_in_order() {
    let plays = ["a", "b", "c", "d"].map(Play::say);
    let (app, engine) = app(plays);
    let request = completion(json!({"prompt": ["x", "yz"], "n": 2, "seed": 5, "max_tokens": 3}));
    let (_, answer) = ask(&app, COMPLETIONS, request).await;
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(answer["object"], "text_completion");
    let choices = answer["choices"].as_array().unwrap();
    let texts: Vec<_> =
        choices.iter().map(|c| (c["index"].as_u64().unwrap(), &c["text"])).collect();
    assert_eq!(texts, [(0, &json!("a")), (1, &json!("b")), (2, &json!("c")), (3, &json!("d"))]);
    assert_eq!(answer["usage"]["prompt_tokens"], 3);
    assert_eq!(answer["usage"]["completion_tokens"], 4);
    let jobs = engine.jobs();
    let seen: Vec<_> =
        jobs.iter().map(|job| (job.prompt.len(), job.sampling.seed, job.max_tokens)).collect();
    assert_eq!(seen, [(1, 5, 3), (1, 6, 3), (2, 5, 3), (2, 6, 3)]);
}

/// An answer of `ok` after a prompt of three tokens with its scores.
fn echoed() -> Play {
    let prompt =
        Event::Prompt(vec![double::score(b'b'.into(), -7.0), double::score(b'c'.into(), -8.0)]);
    let Play::Events(answer) = Play::say("ok") else { panic!("an answer is events") };
    Play::Events([prompt].into_iter().chain(answer).collect())
}

#[tokio::test]
async fn a_prompt_is_echoed_with_its_scores() {
    let request = json!({"model": "base", "prompt": "abc", "echo": true, "logprobs": 0});
    let (app, engine) = app([echoed()]);
    let (_, answer) = ask(&app, COMPLETIONS, request.clone()).await;
    assert_eq!(engine.jobs()[0].prompt_logprobs, Some(0));
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], "abcok");
    assert_eq!(
        choice["logprobs"],
        json!({"tokens": ["a", "b", "c", "o", "k"], "token_logprobs": [null, -7.0, -8.0, -1.0, -2.0],
            "top_logprobs": [null, {"b": -7.0}, {"c": -8.0}, {"o": -1.0}, {"k": -2.0}],
            "text_offset": [0, 1, 2, 3, 4]})
    );
    let (app, _) = self::app([echoed()]);
    let events =
        events(send(&app, post(COMPLETIONS, &merge(request, json!({"stream": true})))).await).await;
    let texts: Vec<_> =
        events.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(texts.concat(), "abcok");
    assert_eq!(texts[0], "abc");
    let offsets: Vec<_> = events
        .iter()
        .flat_map(|event| event["choices"][0]["logprobs"]["text_offset"].as_array().unwrap())
        .collect();
    assert_eq!(offsets, [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn a_prompt_can_be_scored_without_an_answer() {
    let prompt = Event::Prompt(vec![double::score(b'b'.into(), -7.0)]);
    let play = Play::Events(vec![prompt, Event::Finished(Finish::Length)]);
    let (app, engine) = app([play]);
    let request =
        json!({"model": "base", "prompt": [97, 98], "echo": true, "logprobs": 1, "max_tokens": 0});
    let (status, answer) = ask(&app, COMPLETIONS, request).await;
    assert_eq!((status, engine.jobs()[0].max_tokens), (200, 0));
    assert_eq!(answer["choices"][0]["text"], "ab");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["choices"][0]["logprobs"]["token_logprobs"], json!([null, -7.0]));
    let (app, _) = self::app([Play::say("!")]);
    let request = json!({"model": "base", "prompt": "ab", "echo": true});
    let (_, answer) = ask(&app, COMPLETIONS, request).await;
    assert_eq!(
        (&answer["choices"][0]["text"], &answer["choices"][0]["logprobs"]),
        (&json!("ab!"), &Value::Null)
    );
}

#[tokio::test]
async fn adapters_are_chosen_and_named() {
    let (app, _) = app([]);
    let ask = |header: Option<&'static str>, model: Value| {
        let request = post(CHAT, &chat(json!({"model": model})));
        let request = match header {
            Some(value) => with_header(request, "x-adapter", value),
            None => request,
        };
        send(&app, request)
    };
    let named =
        |response: &Response| response.headers()["x-chorus-adapter"].to_str().unwrap().to_owned();
    let response = ask(Some("sql"), json!("base")).await;
    assert!(named(&response).starts_with("sql@v1;sha256="), "{}", named(&response));
    let by_header = body(response).await;
    assert_eq!(by_header["model"], "base");
    let response = ask(None, json!("org/tiny:sql@v1")).await;
    assert!(named(&response).starts_with("sql@v1;sha256="));
    let by_model = body(response).await;
    assert_eq!(by_model["model"], "org/tiny:sql@v1");
    assert_eq!(by_model["system_fingerprint"], by_header["system_fingerprint"]);
    let base = body(ask(None, json!("default")).await).await;
    assert_ne!(base["system_fingerprint"], by_header["system_fingerprint"]);
    assert_eq!(body(ask(Some("law"), Value::Null).await).await["model"], "law");
}

#[tokio::test]
async fn all_choices_share_one_lease() {
    let (app, engine) = app(["a", "b", "c"].map(Play::hang));
    let request = post(COMPLETIONS, &completion(json!({"model": "law", "stream": true, "n": 3})));
    let response = send(&app, request).await;
    assert!(response.headers()["x-chorus-adapter"].to_str().unwrap().starts_with("law@v1;"));
    assert_eq!((engine.wanted(), app.adapters().stats().leased), (3, 1));
    assert_eq!(app.adapters().stats().misses, 1);
    drop(response);
    assert_eq!((engine.wanted(), app.adapters().stats().leased), (0, 0));
}

#[tokio::test]
async fn refusals_have_their_status() {
    let tokens = vec![97; double::CONTEXT];
    let table = [
        (CHAT, json!({"messages": []}), 400, "-", Value::Null),
        (CHAT, chat(json!({"model": "nobody"})), 404, "model_not_found", json!("model")),
        (CHAT, chat(json!({"model": null})), 400, "-", json!("model")),
        (CHAT, chat(json!({"tools": [{"type": "function"}]})), 400, "-", json!("tools")),
        (CHAT, chat(json!({"chat_template": "x"})), 400, "-", json!("chat_template")),
        (CHAT, chat(json!({"max_tokens": 0})), 400, "-", json!("max_tokens")),
        (CHAT, chat(json!({"max_completion_tokens": 0})), 400, "-", json!("max_completion_tokens")),
        (CHAT, chat(json!({"top_logprobs": 2})), 400, "-", json!("top_logprobs")),
        (
            CHAT,
            chat(json!({"logprobs": true, "top_logprobs": 21})),
            400,
            "-",
            json!("top_logprobs"),
        ),
        (CHAT, chat(json!({"max_tokens": 100})), 400, "context_length_exceeded", Value::Null),
        (
            COMPLETIONS,
            completion(json!({"prompt": tokens})),
            400,
            "context_length_exceeded",
            Value::Null,
        ),
        (COMPLETIONS, completion(json!({"prompt": ""})), 400, "-", json!("prompt")),
        (COMPLETIONS, completion(json!({"prompt": null})), 400, "-", Value::Null),
        (COMPLETIONS, completion(json!({"suffix": "x"})), 400, "-", json!("suffix")),
        (COMPLETIONS, completion(json!({"best_of": 2})), 400, "-", json!("best_of")),
        (COMPLETIONS, completion(json!({"logprobs": 21})), 400, "-", json!("logprobs")),
        (COMPLETIONS, completion(json!({"prompt": ["a", "b"], "n": 65})), 400, "-", json!("n")),
        (COMPLETIONS, completion(json!({"n": 1_000_000_000})), 400, "-", json!("n")),
    ];
    for (path, request, status, code, param) in table {
        for stream in [false, true] {
            let (app, engine) = app([]);
            let request = merge(request.clone(), json!({"stream": stream}));
            let (got, answer) = ask(&app, path, request.clone()).await;
            let error = answer["error"].as_object().expect("an error");
            assert_eq!((got, error_code(&answer)), (status, code), "{request} {answer}");
            if param != Value::Null {
                assert_eq!(error["param"], param, "{request}");
            }
            assert!(error["message"].is_string() && error["type"] == "invalid_request_error");
            assert!(engine.jobs().is_empty());
        }
    }
}

#[tokio::test]
async fn a_full_engine_refuses_politely() {
    for wish in [json!({}), json!({"stream": true})] {
        let (app, engine) = app([Play::hang(""), Play::Refuse(Refused::Full { waiting: 9 })]);
        let response = send(&app, post(CHAT, &chat(merge(wish, json!({"n": 2}))))).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(error_code(&body(response).await), "overloaded");
        assert_eq!(engine.wanted(), 0);
    }
}

#[tokio::test]
async fn a_client_may_shorten_its_deadline() {
    let (app, engine) = app([Play::hang("a")]);
    let request = with_header(post(CHAT, &chat(json!({}))), "x-request-timeout", "0.05");
    let response = send(&app, request).await;
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(engine.wanted(), 0);
    let request = with_header(post(CHAT, &chat(json!({}))), "x-request-timeout", "soon");
    assert_eq!(send(&app, request).await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn models_are_listed_by_content() {
    let (app, _) = app([]);
    let list = body(get(&app, "/v1/models").await).await;
    let names: Vec<_> = list["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(names, ["org/tiny", "law", "sql"]);
    assert_eq!(list["data"][0]["parent"], Value::Null);
    assert_eq!(list["data"][1]["parent"], "org/tiny");
    for model in list["data"].as_array().unwrap() {
        assert!(model["root"].as_str().unwrap().starts_with("sha256:"));
        assert_eq!(model["max_model_len"], double::CONTEXT);
    }
    for id in
        ["org/tiny", "org%2Ftiny", "base", "sql", "sql@v1", "org/tiny:sql", "org%2Ftiny%3Asql%40v1"]
    {
        let response = get(&app, &format!("/v1/models/{id}")).await;
        assert_eq!(response.status(), StatusCode::OK, "{id}");
    }
    let shown = body(get(&app, "/v1/models/sql").await).await;
    assert_eq!(shown, list["data"][2]);
    for id in ["nobody", "sql@v2", "%ff", "org/other"] {
        let response = get(&app, &format!("/v1/models/{id}")).await;
        assert!(response.status().is_client_error(), "{id}");
        assert!(body(response).await["error"]["message"].is_string());
    }
}

#[tokio::test]
async fn texts_are_tokenized_and_back() {
    let (app, _) = app([]);
    let (_, tokens) = ask(&app, "/tokenize", json!({"prompt": "hi<|end|>"})).await;
    assert_eq!(tokens, json!({"count": 3, "max_model_len": 100, "tokens": [104, 105, 256]}));
    let (_, chat) =
        ask(&app, "/tokenize", json!({"messages": [{"role": "user", "content": "a"}]})).await;
    assert_eq!(chat["tokens"], json!(ids("user:a\nassistant:")));
    let (_, text) = ask(&app, "/detokenize", json!({"tokens": [104, 105, 256]})).await;
    assert_eq!(text, json!({"prompt": "hi<|end|>"}));
    assert_eq!(ask(&app, "/detokenize", json!({"tokens": [9999]})).await.0, 400);
    assert_eq!(ask(&app, "/detokenize", json!([[104]])).await.0, 400);
    assert_eq!(ask(&app, "/tokenize", json!({})).await.0, 400);
    let (status, long) = ask(&app, "/tokenize", json!({"prompt": "x".repeat(20_000)})).await;
    assert_eq!((status, &long["count"]), (200, &json!(20_000)));
}

#[tokio::test]
async fn every_error_has_a_json_body() {
    let settings = Settings { body_limit: 64, ..Settings::default() };
    let (app, _) = app_with([], settings);
    let json_post = |body: &'static str| {
        Request::post(CHAT)
            .header(HOST, "localhost")
            .header("content-type", "application/json")
            .body(Body::from(body))
            .unwrap()
    };
    let long = json_post(
        "{\"model\":\"base\",\"messages\":[{\"role\":\"user\",\"content\":\"far too long a question\"}]}",
    );
    let plain = Request::post(CHAT).header(HOST, "localhost").body(Body::from("{}")).unwrap();
    let foreign =
        Request::get("/v1/models").header(HOST, "evil.example").body(Body::empty()).unwrap();
    let wrong = Request::get(CHAT).header(HOST, "localhost").body(Body::empty()).unwrap();
    let lost = Request::get("/v1/nowhere").header(HOST, "localhost").body(Body::empty()).unwrap();
    for (request, status) in [
        (long, 413),
        (plain, 415),
        (json_post("{"), 400),
        (foreign, 403),
        (wrong, 405),
        (lost, 404),
    ] {
        let response = send(&app, request).await;
        assert_eq!(response.status().as_u16(), status);
        assert!(response.headers().contains_key("x-request-id"), "{status}");
        if status == 405 {
            assert_eq!(response.headers()["allow"], "POST");
        }
        let error = body(response).await["error"].clone();
        let keys: Vec<_> = error.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["message", "type", "param", "code"]);
    }
}

#[tokio::test]
async fn draining_is_seen_by_probes_and_clients() {
    let (app, _) = app([]);
    assert_eq!(get(&app, "/ready").await.status(), StatusCode::OK);
    app.drain();
    assert_eq!(get(&app, "/ready").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(get(&app, "/health").await.status(), StatusCode::OK);
    let response = send(&app, post(CHAT, &chat(json!({})))).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.headers().contains_key("retry-after"));
}

#[tokio::test]
async fn metrics_are_written_without_names_of_tenants() {
    let (app, _) = app([Play::say("abc")]);
    let _ = ask(&app, CHAT, chat(json!({"model": "sql"}))).await;
    let _ = get(&app, "/v1/models/nobody").await;
    let response = get(&app, "/metrics").await;
    assert!(
        response.headers()["content-type"]
            .to_str()
            .unwrap()
            .starts_with("application/openmetrics-text")
    );
    let text = text(response).await;
    for line in [
        "chorus_requests_total{endpoint=\"/v1/chat/completions\",code=\"200\"} 1",
        "chorus_requests_total{endpoint=\"/v1/models/{*id}\",code=\"404\"} 1",
        "chorus_requests_running 3",
        "chorus_requests_waiting 0",
        "chorus_kv_pages_total 0",
        "chorus_kv_pages_free 0",
        "chorus_adapter_cache_budget_bytes 1048576",
        "chorus_adapters_resident 1",
        "chorus_adapter_loads_total 1",
        "chorus_adapter_load_failures_total 0",
        "chorus_adapter_evictions_total 0",
        "chorus_adapter_hits_total 0",
        "chorus_adapter_misses_total 1",
        "chorus_adapter_load_seconds_count 1",
        "chorus_prompt_tokens_total 0",
        "chorus_generation_tokens_total 0",
        "chorus_preemptions_total 0",
        "chorus_steps_total 0",
        "chorus_mixed_steps_total 0",
        "chorus_time_to_first_token_seconds_count 1",
        "chorus_inter_token_latency_seconds_count 2",
        "chorus_e2e_request_latency_seconds_count 1",
        "# EOF",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert!(text.contains("chorus_build_info{version="));
    assert!(text.contains("chorus_adapter_resident_bytes "));
    assert!(!text.contains("sql") && !text.contains("nobody"));
}

/// A server on a port of its own.
struct Server {
    address: std::net::SocketAddr,
    stop: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

async fn start(app: App) -> Server {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let task = tokio::spawn(async move {
        let stopped = async {
            let _ = stopped.await;
        };
        super::serve(listener, app, stopped).await
    });
    Server { address, stop, task }
}

async fn until(condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "it did not come true");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Sends a chat over a connection of its own.
async fn connect(server: &Server, request: &Value) -> tokio::net::TcpStream {
    use tokio::io::AsyncWriteExt;
    let body = request.to_string();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    stream.write_all((head + &body).as_bytes()).await.unwrap();
    stream
}

fn jobs_begun(engine: &Scripted, count: usize) -> impl Fn() -> bool {
    move || engine.wanted() == count
}

#[tokio::test]
async fn a_broken_connection_cancels_its_jobs() {
    let (app, engine) = app([Play::hang("a"), Play::hang("b")]);
    let server = start(app).await;
    let stream = connect(&server, &chat(json!({"stream": true}))).await;
    let whole = connect(&server, &chat(json!({}))).await;
    until(jobs_begun(&engine, 2)).await;
    drop(stream);
    until(jobs_begun(&engine, 1)).await;
    drop(whole);
    until(jobs_begun(&engine, 0)).await;
    server.stop.send(()).unwrap();
    server.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stream_outlives_the_shutdown_signal() {
    let settings = Settings { drain: Duration::from_millis(300), ..Settings::default() };
    let (app, engine) = app_with([Play::hang("a")], settings);
    let server = start(app.clone()).await;
    let began = std::time::Instant::now();
    let _stream = connect(&server, &chat(json!({"stream": true}))).await;
    let _idle = tokio::net::TcpStream::connect(server.address).await.unwrap();
    until(jobs_begun(&engine, 1)).await;
    server.stop.send(()).unwrap();
    until(|| app.accepting().is_err()).await;
    assert_eq!(engine.wanted(), 1);
    server.task.await.unwrap().unwrap();
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!(engine.wanted(), 0);
    assert!(tokio::net::TcpStream::connect(server.address).await.is_err());
}
