//! What is refused, and how.

use super::{
    super::{
        app::Settings,
        double::{self, Play, app, app_with},
    },
    *,
};
use crate::engine::Refused;

#[tokio::test]
async fn what_a_form_or_a_mix_cannot_be_is_refused_by_field() {
    for (request, param) in [
        (json!({"min_tokens": 9, "max_tokens": 8}), "min_tokens"),
        (json!({"cache_salt": ""}), "cache_salt"),
        (json!({"logit_bias": {"99999": 1}}), "logit_bias"),
        (json!({"guided_regex": "("}), "guided_regex"),
        (json!({"adapters": []}), "adapters"),
        (json!({"best_of": 2, "n": 3}), "best_of"),
        (json!({"best_of": 2, "stream": true}), "best_of"),
        (json!({"best_of": 129}), "best_of"),
    ] {
        let (app, engine) = app([]);
        let (status, answer) = ask(&app, COMPLETIONS, completion(request.clone())).await;
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)), "{request} {answer}");
        assert!(engine.jobs().is_empty());
    }
}

#[tokio::test]
async fn why_a_regex_is_none_is_in_its_refusal() {
    let (app, _) = app([]);
    let (_, answer) = ask(&app, COMPLETIONS, completion(json!({"guided_regex": "a(b"}))).await;
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("unclosed group") && !message.contains('^'), "{message}");
}

#[tokio::test]
async fn refusals_have_their_status() {
    let tokens = vec![97; double::CONTEXT];
    let table = [
        (CHAT, json!({"messages": []}), 400, "-", Value::Null),
        (CHAT, chat(json!({"model": "nobody"})), 404, "model_not_found", json!("model")),
        (CHAT, chat(json!({"model": null})), 400, "-", json!("model")),
        (
            CHAT,
            chat(json!({"tools": [{"type": "function"}]})),
            400,
            "-",
            json!("tools[0].function"),
        ),
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
        let usage = body(get(&app, "/v1/usage?by=total").await).await;
        assert_eq!(usage["data"], json!([]), "what is refused costs nothing");
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
async fn a_text_that_cannot_fit_is_refused_without_being_encoded() {
    // Encoding would refuse its length in other words, and this run of spaces too.
    let huge = " ".repeat(3 << 20);
    for (path, request) in [
        (COMPLETIONS, completion(json!({"prompt": huge}))),
        (COMPLETIONS, completion(json!({"prompt": ["a", huge]}))),
        (CHAT, chat(json!({"messages": [{"role": "user", "content": huge}]}))),
    ] {
        let (app, engine) = app([]);
        let (status, answer) = ask(&app, path, request).await;
        assert_eq!((status, error_code(&answer)), (400, "context_length_exceeded"), "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains("maximum context length is 100 tokens"), "{message}");
        assert!(engine.jobs().is_empty());
    }
}

#[tokio::test]
async fn more_text_than_is_ever_encoded_is_not_tokenized() {
    let (app, _) = app([]);
    let (status, answer) = ask(&app, "/tokenize", json!({"prompt": "x".repeat(2 << 20)})).await;
    assert_eq!(status, 400);
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("at most 1048576 are accepted"), "{message}");
}
