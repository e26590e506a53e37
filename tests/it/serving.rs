//! What a client and an operator see of the running server.

use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::world::{Server, fixtures, folders, json, name, shipped_adapters};

const CHAT: &str = "/v1/chat/completions";

fn question(model: &str, max_tokens: usize) -> serde_json::Value {
    json!({
        "model": model, "max_tokens": max_tokens, "temperature": 0, "stream": true, "ignore_eos": true,
        "messages": [{"role": "user", "content": "Tell me a long story about the sea."}],
    })
}

/// Waits until a gauge has this value, or fails.
async fn until(server: &Server, metric: &str, value: f64, within: Duration) {
    let begun = Instant::now();
    loop {
        let now = server.metric(metric).await;
        if now.to_bits() == value.to_bits() {
            return;
        }
        assert!(begun.elapsed() < within, "{metric} is still {now} after {within:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_in_mid_stream_frees_its_row() {
    let server = Server::start(&[]);
    for model in ["base", "sql"] {
        let mut stream = server.post(CHAT, &question(model, 4000)).await.bytes_stream();
        for _ in 0..3 {
            stream.next().await.unwrap().unwrap();
        }
        until(&server, "chorus_requests_running", 1.0, Duration::from_secs(5)).await;
        drop(stream);
        until(&server, "chorus_requests_running", 0.0, Duration::from_secs(1)).await;
    }
    let free = server.metric("chorus_kv_pages_free").await;
    assert_eq!(free.to_bits(), server.metric("chorus_kv_pages_total").await.to_bits());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_is_computed_from_where_it_goes_on_and_says_the_same() {
    let (server, without) = (Server::start(&[]), Server::start(&["--prefix-cache", "false"]));
    let long = "The order came late, the box was open, and nobody answered the phone. ".repeat(4);
    let mut messages = vec![json!({"role": "user", "content": long})];
    let mut cached = Vec::new();
    for model in ["base", "support-json", "support-json", "base"] {
        let body = json!({
            "model": model, "messages": messages, "max_tokens": 24, "temperature": 0,
            "logprobs": true, "top_logprobs": 3,
        });
        let answer = server.answer(CHAT, &body).await;
        let plain = without.answer(CHAT, &body).await;
        assert_eq!(answer["choices"], plain["choices"], "{model}");
        let of = |answer: &serde_json::Value| {
            let details = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
            (details.as_u64().unwrap(), answer["usage"]["prompt_tokens"].as_u64().unwrap())
        };
        assert_eq!(of(&plain).0, 0);
        cached.push(of(&answer));
        messages.push(answer["choices"][0]["message"].clone());
        messages.push(json!({"role": "user", "content": "And then?"}));
    }
    // Who speaks first through a model computes all of it; who goes on computes what is new, whoever spoke meanwhile.
    let [(0, _), (0, second), (third, _), (fourth, _)] = cached[..] else {
        panic!("{cached:?}");
    };
    assert!(third >= second - second % 16 - 16 && fourth > 64, "{cached:?}");
    let total = server.metric("chorus_cached_prompt_tokens_total").await;
    assert_eq!(total.to_bits(), ((third + fourth) as f64).to_bits());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_finishes_streams_and_exits_with_zero() {
    let server = Server::start(&[]);
    let mut stream = server.post(CHAT, &question("pirate", 60)).await.bytes_stream();
    let mut body = stream.next().await.unwrap().unwrap().to_vec();
    server.signal("TERM");
    while let Some(chunk) = stream.next().await {
        body.extend(chunk.unwrap());
    }
    let body = String::from_utf8(body).unwrap();
    assert!(body.ends_with("data: [DONE]\n\n"), "{body}");
    assert!(body.contains("\"finish_reason\":\"length\""), "{body}");
    assert!(server.wait().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_folders_are_listed_as_refused_and_the_good_ones_serve() {
    let cases = json(&fixtures().join("bad/cases.json"));
    let dir = tempfile::tempdir().unwrap();
    let bad = folders(&fixtures().join("bad"));
    for folder in bad.iter().chain(&folders(&shipped_adapters())) {
        let copy = dir.path().join(name(folder));
        std::fs::create_dir(&copy).unwrap();
        for file in std::fs::read_dir(folder).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), copy.join(file.file_name())).unwrap();
        }
    }
    for case in cases.as_array().unwrap() {
        if let Some(length) = case["config_padded_to"].as_u64() {
            let config =
                dir.path().join(case["name"].as_str().unwrap()).join("adapter_config.json");
            let mut bytes = std::fs::read(&config).unwrap();
            bytes.resize(usize::try_from(length).unwrap(), b' ');
            std::fs::write(config, bytes).unwrap();
        }
    }
    let server = Server::start(&["--adapters", dir.path().to_str().unwrap()]);
    let refused = |name: &str| {
        let line = |line: &&str| line.starts_with(&format!("  refused   {name}: "));
        server.plan.lines().find(line).map(str::to_lowercase)
    };
    let cases = cases.as_array().unwrap();
    assert!(cases.len() >= 78);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        if case["expect"].as_str().unwrap().starts_with("4xx") && name != "unsupported-lora-bias" {
            let line =
                refused(name).unwrap_or_else(|| panic!("{name} is not refused:\n{}", server.plan));
            assert!(line.len() > name.len() + 24, "{name} is refused without a reason: {line}");
        }
        if case["expect"] == "ok" {
            assert_eq!(refused(name), None);
        }
    }
    for name in ["sql", "pirate", "control-good-mini"] {
        let mut body = question(name, 4);
        body["stream"] = false.into();
        server.answer(CHAT, &body).await;
    }
    let mut body = question("nan-weights", 4);
    body["stream"] = false.into();
    let response = server.post(CHAT, &body).await;
    assert_eq!(response.status(), 404);
    assert!(!std::path::Path::new("/tmp/PICKLE_WAS_EXECUTED").exists());
}
