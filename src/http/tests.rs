//! Whole requests through the router, against an engine that follows a script.

mod answers;
mod connections;
mod console;
mod doors;
mod embeddings;
mod exposition;
mod gateway;
mod lorax;
mod messages;
mod operations;
mod refusals;
mod report;
mod responses;
mod tls;
mod words;

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
    app::App,
    guard::{Guard, Reach},
};

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

/// The names and data of all events of a stream that does not end with `[DONE]`.
async fn named_events(response: Response) -> Vec<(String, Value)> {
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = text(response).await;
    let events = text.strip_suffix("\n\n").unwrap().split("\n\n");
    let read = |event: &str| {
        let (name, data) = match event.strip_prefix("event: ") {
            Some(named) => named.split_once('\n').unwrap(),
            None => ("", event),
        };
        let data = data.strip_prefix("data: ").unwrap();
        (name.to_owned(), serde_json::from_str(data).unwrap())
    };
    events.map(read).collect()
}

fn error_code(body: &Value) -> &str {
    body["error"]["code"].as_str().unwrap_or("-")
}

/// Waits until something comes true, for much longer than it should take.
async fn until(condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "it did not come true");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
