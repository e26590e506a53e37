//! The routes of other servers' clients say what chats and completions say, and ask what they ask.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};

use crate::{
    tenants::{Holder, operator, tenant},
    uploads::{body, mini},
    world::Server,
};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";

/// A route, where its answer has the text, and its stream's events a piece of it.
#[derive(Clone, Copy)]
struct Route {
    path: &'static str,
    text: &'static str,
    piece: &'static str,
}

const CHATS: [Route; 3] = [
    Route { path: CHAT, text: "/choices/0/message/content", piece: "/choices/0/delta/content" },
    Route { path: RESPONSES, text: "/output/0/content/0/text", piece: "/delta" },
    Route { path: MESSAGES, text: "/content/0/text", piece: "/delta/text" },
];
const TEXTS: [Route; 3] = [
    Route { path: COMPLETIONS, text: "/choices/0/text", piece: "/choices/0/text" },
    Route { path: "/generate", text: "/generated_text", piece: "" },
    Route { path: "/", text: "/0/generated_text", piece: "/token/text" },
];

/// The same question on each route, answered greedily.
fn question(path: &str, model: &str, tokens: usize) -> Value {
    let said = "How do I cook rice?";
    let messages = json!([{"role": "user", "content": said}]);
    match path {
        RESPONSES => {
            json!({"model": model, "input": said, "temperature": 0, "max_output_tokens": tokens})
        }
        COMPLETIONS => {
            json!({"model": model, "prompt": "Once upon a time", "temperature": 0, "max_tokens": tokens})
        }
        CHAT | MESSAGES => {
            json!({"model": model, "messages": messages, "temperature": 0, "max_tokens": tokens})
        }
        _ => json!({"inputs": "Once upon a time",
            "parameters": {"adapter_id": model, "max_new_tokens": tokens}}),
    }
}

fn streamed(mut question: Value) -> Value {
    question["stream"] = true.into();
    question
}

/// All pieces of a stream together.
async fn joined(response: Response, piece: &str) -> String {
    let events = response.text().await.unwrap();
    let data = events.lines().filter_map(|line| line.strip_prefix("data: "));
    let events = data.filter(|data| *data != "[DONE]").map(|data| {
        let event: Value = serde_json::from_str(data).unwrap();
        event.pointer(piece).and_then(Value::as_str).unwrap_or("").to_owned()
    });
    events.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_says_the_same_whole_and_streamed() {
    let server = Server::start(&[]);
    for (routes, model) in [(CHATS, "pirate"), (CHATS, "base"), (TEXTS, "pirate"), (TEXTS, "base")]
    {
        let mut said = Vec::new();
        for route in routes {
            let whole = server.answer(route.path, &question(route.path, model, 16)).await;
            said.push(whole.pointer(route.text).unwrap().as_str().unwrap().to_owned());
            let stream = server.post(route.path, &streamed(question(route.path, model, 16))).await;
            let from = stream.headers()["x-chorus-adapter"].to_str().unwrap().to_owned();
            assert_eq!(from.split(['@', ';']).next(), Some(model));
            if !route.piece.is_empty() {
                said.push(joined(stream, route.piece).await);
            }
        }
        if routes[0].path == COMPLETIONS {
            let path = "/generate_stream";
            let stream = server.post(path, &question(path, model, 16)).await;
            said.push(joined(stream, "/token/text").await);
        }
        assert!(!said[0].is_empty() && said.iter().all(|text| *text == said[0]), "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_end_at_their_length_or_at_a_stop_string() {
    let server = Server::start(&[]);
    let count = "Count: 1, 2, 3, 4, 5,";
    let counted = json!({"inputs": count, "parameters":
        {"stop": [" 8"], "max_new_tokens": 30, "details": true}});
    let answer = server.answer("/generate", &counted).await;
    assert_eq!(answer["generated_text"], " 6, 7, 8");
    assert_eq!(answer["details"]["finish_reason"], "stop_sequence");
    let tokens = answer["details"]["tokens"].as_array().unwrap();
    let texts: Vec<_> = tokens.iter().map(|token| token["text"].as_str().unwrap()).collect();
    assert_eq!(texts.concat(), " 6, 7, 8");
    assert!(tokens.iter().all(|token| token["logprob"].as_f64().unwrap() <= 0.0));

    let mut said = question(MESSAGES, "base", 40);
    said["messages"] = json!([{"role": "user", "content": "Count to ten."},
        {"role": "assistant", "content": "1, 2, 3,"}]);
    said["stop_sequences"] = json!(["7"]);
    let answer = server.answer(MESSAGES, &said).await;
    assert_eq!(
        (&answer["stop_reason"], &answer["stop_sequence"]),
        (&json!("stop_sequence"), &json!("7"))
    );
    assert!(!answer["content"][0]["text"].as_str().unwrap().contains('7'), "{answer}");

    let cut = server.answer(RESPONSES, &question(RESPONSES, "pirate", 5)).await;
    assert_eq!((&cut["status"], &cut["usage"]["output_tokens"]), (&json!("incomplete"), &json!(5)));
    let cut = server.answer(MESSAGES, &question(MESSAGES, "pirate", 5)).await;
    assert_eq!(
        (&cut["stop_reason"], &cut["usage"]["output_tokens"]),
        (&json!("max_tokens"), &json!(5))
    );
    let mut short = question("/generate", "pirate", 5);
    short["parameters"]["details"] = true.into();
    let cut = server.answer("/generate", &short).await["details"].clone();
    assert_eq!((&cut["finish_reason"], &cut["generated_tokens"]), (&json!("length"), &json!(5)));
    // Of itself: the adapter answers with one word.
    let review = "The service was great.";
    let whole = json!({"model": "sentiment", "input": review, "temperature": 0});
    assert_eq!(server.answer(RESPONSES, &whole).await["status"], "completed");
    let whole = json!({"model": "sentiment", "max_tokens": 20, "temperature": 0,
        "messages": [{"role": "user", "content": review}]});
    assert_eq!(server.answer(MESSAGES, &whole).await["stop_reason"], "end_turn");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_frees_its_row_on_these_routes_too() {
    let server = Server::start(&[]);
    for path in [RESPONSES, MESSAGES, "/generate_stream", "/"] {
        let mut long = streamed(question(path, "sql", 4000));
        long["ignore_eos"] = true.into();
        if long.get("parameters").is_some() {
            long["parameters"]["ignore_eos_token"] = true.into();
        }
        let mut stream = server.post(path, &long).await.bytes_stream();
        for _ in 0..6 {
            stream.next().await.unwrap().unwrap();
        }
        let running = async || server.metric("chorus_requests_running").await > 0.0;
        assert!(running().await, "{path}");
        drop(stream);
        let left = Instant::now();
        while running().await {
            assert!(left.elapsed() < Duration::from_secs(5), "{path}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Where each of these routes has the words of a refusal.
const WORDS: [(&str, &str); 4] = [
    (RESPONSES, "/error/type"),
    (MESSAGES, "/error/type"),
    ("/generate", "/error_type"),
    ("/", "/error_type"),
];

/// Status and type of a refusal.
async fn refusal(request: RequestBuilder, at: &str) -> (u16, String) {
    let (status, answer) = body(request.send().await.unwrap()).await;
    let word = answer.pointer(at).and_then(Value::as_str).unwrap_or_else(|| panic!("{answer}"));
    (status, word.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_route_asks_for_a_key_and_a_scope() {
    let server = Server::start(&[]);
    let operator = operator(&server, "acme").await;
    let holder = tenant(&operator, "acme").await;
    for (at, (path, words)) in WORDS.into_iter().enumerate() {
        let ask = || {
            let url = format!("{}{path}", server.url);
            server.client.post(url).json(&question(path, "base", 2))
        };
        let word = |words: [&'static str; 4]| words[at].to_owned();
        let unknown =
            ["invalid_request_error", "authentication_error", "authorization", "authorization"];
        for request in [
            ask(),
            ask().bearer_auth("wrong"),
            ask().header("x-api-key", "wrong"),
            ask().bearer_auth("wrong").header("x-api-key", &holder.key),
        ] {
            assert_eq!(refusal(request, words).await, (401, word(unknown)), "{path}");
        }
        let scope = ["invalid_request_error", "permission_error", "authorization", "authorization"];
        let wrong = ask().bearer_auth(&operator.key);
        assert_eq!(refusal(wrong, words).await, (403, word(scope)), "{path}");
        for request in [
            ask().bearer_auth(&holder.key),
            ask().header("x-api-key", &holder.key),
            ask().bearer_auth(&holder.key).header("x-api-key", "a gateway's"),
        ] {
            assert_eq!(request.send().await.unwrap().status(), 200, "{path}");
        }
    }
    let path = format!("{}{RESPONSES}/resp_1", server.url);
    assert_eq!(server.client.get(&path).send().await.unwrap().status(), 401);
    assert_eq!(holder.get(&format!("{RESPONSES}/resp_1")).await.0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_route_reaches_what_is_anothers_and_all_are_counted() {
    let server = Server::start(&[]);
    let operator = operator(&server, "one").await;
    let (one, two) = (tenant(&operator, "one").await, tenant(&operator, "two").await);
    assert_eq!(one.put("mine", mini(1)).await.0, 201);
    let ask = |holder: &Holder<'_>, path: &str, body: &Value| {
        let url = format!("{}{path}", server.url);
        server.client.post(url).bearer_auth(&holder.key).json(body)
    };
    for (path, _) in WORDS {
        for stream in [false, true] {
            let mut answers = Vec::new();
            for name in ["mine", "xxxx"] {
                let mut named = question(path, name, 2);
                let mut headed = question(path, "base", 2);
                (named["stream"], headed["stream"]) = (stream.into(), stream.into());
                let headed = ask(&two, path, &headed).header("x-adapter", name);
                for request in [ask(&two, path, &named), headed] {
                    let response = request.send().await.unwrap();
                    assert_eq!(response.status(), 404, "{path}");
                    assert!(response.headers().get("x-chorus-adapter").is_none());
                    answers.push(response.text().await.unwrap().replace(name, "NAME"));
                }
            }
            assert!(answers.iter().all(|answer| *answer == answers[0]), "{path}: {answers:?}");
        }
        assert_eq!(ask(&one, path, &question(path, "mine", 2)).send().await.unwrap().status(), 200);
    }
    let quota = json!({"requests_per_minute": 3});
    assert_eq!(operator.post("/v1/admin/tenants/two/quota", &quota).await.0, 200);
    for (left, path) in [RESPONSES, MESSAGES, "/generate"].into_iter().enumerate() {
        let response = ask(&two, path, &question(path, "base", 2)).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        let remaining = &response.headers()["x-ratelimit-remaining-requests"];
        assert_eq!(remaining.to_str().unwrap(), (2 - left).to_string(), "{path}");
    }
    for ((path, words), word) in
        WORDS.into_iter().zip(["requests", "rate_limit_error", "rate_limit", "rate_limit"])
    {
        let over = ask(&two, path, &question(path, "base", 2)).send().await.unwrap();
        assert!(over.headers().contains_key("retry-after"), "{path}");
        let request = ask(&two, path, &question(path, "base", 2));
        assert_eq!(refusal(request, words).await, (429, word.to_owned()), "{path}");
    }
    let (_, used) = operator.get("/v1/admin/usage?by=total").await;
    let rows = used["data"].as_array().unwrap();
    let row = |tenant: &str, adapter: Value| {
        let row = rows.iter().find(|row| row["tenant"] == tenant && row["adapter"] == adapter);
        let row = row.unwrap_or_else(|| panic!("{used}"));
        ["requests", "generated_tokens"].map(|count| row[count].as_u64().unwrap())
    };
    assert_eq!(row("one", json!("mine"))[0], 4);
    assert_eq!(row("two", Value::Null), [3, 6]);
}
