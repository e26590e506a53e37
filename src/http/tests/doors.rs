//! What every route that generates asks first, and in which words each of them refuses.

use super::{
    super::{
        app::Settings,
        double::{Play, app, app_with},
    },
    *,
};
use crate::engine::{Failure, Refused};

/// A route, and what the field is called that names the adapter.
struct Surface {
    path: &'static str,
    body: Value,
    model: &'static [&'static str],
    /// Where a refusal has its message and its type.
    message: &'static str,
    kind: &'static str,
}

fn surfaces() -> Vec<Surface> {
    let (message, kind) = ("/error/message", "/error/type");
    let said = json!([{"role": "user", "content": "hi"}]);
    let mut surfaces = vec![
        Surface { path: CHAT, body: json!({"messages": said}), model: &["model"], message, kind },
        Surface {
            path: COMPLETIONS,
            body: json!({"prompt": "hi"}),
            model: &["model"],
            message,
            kind,
        },
        Surface {
            path: "/v1/responses",
            body: json!({"input": "hi"}),
            model: &["model"],
            message,
            kind,
        },
        Surface {
            path: "/v1/messages",
            body: json!({"messages": said, "max_tokens": 9}),
            model: &["model"],
            message,
            kind,
        },
    ];
    for path in ["/", "/generate", "/generate_stream"] {
        surfaces.push(Surface {
            path,
            body: json!({"inputs": "hi"}),
            model: &["parameters", "adapter_id"],
            message: "/error",
            kind: "/error_type",
        });
    }
    surfaces
}

impl Surface {
    fn naming(&self, model: &str) -> Value {
        let mut body = self.body.clone();
        let mut place = &mut body;
        for key in self.model {
            place = &mut place[key];
        }
        *place = model.into();
        body
    }

    /// A request by this `X-Adapter` and this name in the body.
    fn request(&self, header: Option<&str>, model: Option<&str>) -> Request<Body> {
        let body = model.map_or_else(|| self.body.clone(), |model| self.naming(model));
        let request = post(self.path, &body);
        match header {
            Some(name) => with_header(request, "x-adapter", name),
            None => request,
        }
    }

    fn said<'a>(&self, answer: &'a Value) -> (&'a str, &'a str) {
        let at = |pointer| answer.pointer(pointer).and_then(Value::as_str).expect("a refusal");
        (at(self.message), at(self.kind))
    }
}

#[tokio::test]
async fn who_is_named_answers_or_nobody() {
    for surface in surfaces() {
        for (header, model, from) in [
            (None, Some("sql"), "sql@v1"),
            (None, Some("org/tiny:law@v1"), "law@v1"),
            (None, Some("org/tiny"), "base"),
            (None, Some("base"), "base"),
            (Some("sql"), None, "sql@v1"),
            (Some("sql"), Some("org/tiny"), "sql@v1"),
            (Some("base"), None, "base"),
            (Some("sql"), Some("law"), "400"),
            (Some("base"), Some("sql"), "400"),
            (None, Some("nobody"), "404"),
            (None, Some("sql@v2"), "404"),
            (Some("nobody"), None, "404"),
            (Some("nobody"), Some("sql"), "404"),
            (Some("sql"), Some("nobody"), "404"),
            (Some(""), Some("sql"), "400"),
        ] {
            let (app, engine) = app([]);
            let response = send(&app, surface.request(header, model)).await;
            let case = format!("{} {header:?} {model:?}", surface.path);
            assert!(response.headers().contains_key("x-request-id"), "{case}");
            if let Some(voice) = response.headers().get("x-chorus-adapter") {
                assert_eq!(response.status(), StatusCode::OK, "{case}");
                assert_eq!(voice.to_str().unwrap().split(';').next(), Some(from), "{case}");
                assert_eq!(engine.jobs().len(), 1, "{case}");
                continue;
            }
            assert_eq!(response.status().as_str(), from, "{case}");
            assert!(engine.jobs().is_empty(), "{case}");
            let answer = body(response).await;
            let (message, _) = surface.said(&answer);
            assert!(from != "404" || message.contains("does not exist"), "{case}: {message}");
        }
    }
}

#[tokio::test]
async fn whoever_names_nobody_gets_the_base_from_lorax_alone() {
    for surface in surfaces() {
        let lorax = surface.model.len() == 2;
        for name in [None, Some("")] {
            let (app, _) = app([]);
            let response = send(&app, surface.request(None, name)).await;
            let expected = if lorax { StatusCode::OK } else { StatusCode::BAD_REQUEST };
            assert_eq!(response.status(), expected, "{} {name:?}", surface.path);
        }
    }
}

#[tokio::test]
async fn refusals_are_in_the_words_of_the_route() {
    let small = || Settings { body_limit: 200, ..Settings::default() };
    for surface in surfaces() {
        let openai = surface.message == "/error/message" && surface.path != "/v1/messages";
        let word = |lorax: &'static str, anthropic: &'static str| match surface.path {
            "/v1/messages" => anthropic,
            _ if openai => "invalid_request_error",
            _ => lorax,
        };
        let good = surface.naming("base");
        let bare = |content_type: &'static str, body: String| {
            let request = Request::post(surface.path).header("content-type", content_type);
            request.header(HOST, "localhost").body(Body::from(body)).unwrap()
        };
        let json = "application/json";
        let foreign = with_header(post(surface.path, &good), "origin", "https://evil.example");
        let late = with_header(post(surface.path, &good), "x-request-timeout", "soon");
        let refused = word("validation", "invalid_request_error");
        for (request, status, kind) in [
            (bare(json, "{".to_owned()), 400, refused),
            (bare(json, "[]".to_owned()), 400, refused),
            (bare(json, "{}".to_owned()), 400, refused),
            (late, 400, refused),
            (bare("text/plain", good.to_string()), 415, refused),
            (bare(json, " ".repeat(201)), 413, word("validation", "request_too_large")),
            (foreign, 403, word("authorization", "permission_error")),
            (surface.request(None, Some("x")), 404, word("not_found", "not_found_error")),
        ] {
            let (app, engine) = app_with([], small());
            let response = send(&app, request).await;
            assert_eq!(response.status().as_u16(), status, "{}", surface.path);
            assert_eq!(response.headers()["content-type"], json);
            let answer = body(response).await;
            assert_eq!(surface.said(&answer).1, kind, "{} {answer}", surface.path);
            assert!(engine.jobs().is_empty());
        }
    }
}

#[tokio::test]
async fn what_cannot_be_done_now_is_said_and_when_to_come_back() {
    for surface in surfaces() {
        let (app, _) = app([Play::Refuse(Refused::Full { waiting: 9 })]);
        let full = send(&app, surface.request(None, Some("base"))).await;
        assert_eq!(
            (full.status().as_u16(), &full.headers()["retry-after"]),
            (503, &"1".parse().unwrap())
        );
        let (late, engine) = self::app([Play::fail("", Failure::Deadline)]);
        let late = send(&late, surface.request(None, Some("base"))).await;
        assert_eq!(late.status(), StatusCode::GATEWAY_TIMEOUT, "{}", surface.path);
        assert_eq!(late.headers()["x-should-retry"], "false");
        assert_eq!(engine.jobs().len(), 1);
        app.drain();
        let draining = send(&app, surface.request(None, Some("base"))).await;
        assert_eq!(draining.status(), StatusCode::SERVICE_UNAVAILABLE);
        let answer = body(draining).await;
        assert!(surface.said(&answer).0.contains("shutting down"), "{answer}");
    }
}

#[tokio::test]
async fn a_prompt_that_does_not_fit_is_refused_before_it_is_computed() {
    let long = "x".repeat(200);
    for surface in surfaces() {
        let text = surface.naming("base").to_string().replace("hi", &long);
        let (app, engine) = app([]);
        let body_of = serde_json::from_str(&text).unwrap();
        let (status, answer) = ask(&app, surface.path, body_of).await;
        assert_eq!(status, 400, "{}", surface.path);
        let (message, _) = surface.said(&answer);
        assert!(message.contains("maximum context length is 100 tokens"), "{message}");
        assert!(engine.jobs().is_empty());
    }
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_row_on_every_route() {
    for surface in surfaces() {
        let (app, engine) = app([Play::hang("abc")]);
        let mut request = surface.naming("law");
        request["stream"] = json!(true);
        let request = post(surface.path, &request);
        if surface.path == "/generate" {
            // It is answered whole whatever the body says.
            let whole = tokio::spawn({
                let app = app.clone();
                async move { send(&app, request).await }
            });
            until(|| engine.wanted() == 1).await;
            whole.abort();
            assert!(whole.await.unwrap_err().is_cancelled());
        } else {
            let response = send(&app, request).await;
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!((engine.wanted(), app.adapters().stats().leased), (1, 1));
            drop(response);
        }
        assert_eq!((engine.wanted(), app.adapters().stats().leased), (0, 0), "{}", surface.path);
    }
}

#[tokio::test]
async fn no_route_overlooks_adapters_that_the_body_names() {
    let mut bodies: Vec<_> =
        surfaces().into_iter().map(|surface| (surface.path, surface.body)).collect();
    bodies.push(("/v1/embeddings", json!({"input": "hi"})));
    bodies.push(("/tokenize", json!({"prompt": "hi"})));
    for (path, body) in bodies {
        let (app, engine) = app([]);
        let body = merge(body, json!({"model": "base", "adapters": [{"name": "nobody"}]}));
        let response = send(&app, post(path, &body)).await;
        let others = ["/", "/generate", "/generate_stream", "/tokenize"];
        let status = if others.contains(&path) { 400 } else { 404 };
        assert_eq!(response.status(), status, "{path}");
        let told = text(response).await;
        let named = if status == 400 { "adapters" } else { "nobody" };
        assert!(told.contains(named) && engine.jobs().is_empty(), "{path}: {told}");
    }
}
