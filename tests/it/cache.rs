//! More adapters than fit, as a normal state.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::world::{Server, fixtures, json};

const NAMES: [&str; 8] =
    ["formal", "german", "hashtag", "medcode", "pirate", "sentiment", "sql", "support-json"];
/// Room for the two largest, `support-json` and `formal`, and little else.
const BUDGET: u64 = 17_800_000;

/// A chat of an adapter and the answer that only it gives.
struct Known {
    name: &'static str,
    body: Value,
    want: String,
}

fn known() -> Vec<Known> {
    let of = |name: &'static str| {
        let file = json(&fixtures().join(format!("smollm2/reference/{name}.json")));
        let prompts = file["prompts"].as_array().unwrap().clone();
        let sure = |prompt: &&Value| {
            let end = prompt["eos_at"].as_u64();
            let margins = prompt["margin"].as_array().unwrap();
            let sure = |end: u64| {
                margins
                    .iter()
                    .take(usize::try_from(end).unwrap() + 1)
                    .all(|m| m.as_f64().unwrap() > 0.01)
            };
            end.is_some_and(sure) && prompt["kind"] == "task"
        };
        let known = prompts.iter().filter(sure).map(|prompt| Known {
            name,
            body: json!({"model": name, "messages": prompt["messages"], "max_tokens": 48, "temperature": 0}),
            want: prompt["text"].as_str().unwrap().to_owned(),
        });
        known.collect::<Vec<_>>()
    };
    NAMES.into_iter().flat_map(of).collect()
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_requests_through_room_for_two() {
    let budget = BUDGET.to_string();
    let server =
        Arc::new(Server::start(&["--adapter-cache-bytes", &budget, "--kv-bytes", "16MiB"]));
    let known = Arc::new(known());
    assert!(NAMES.iter().all(|name| known.iter().any(|known| known.name == *name)));
    // The base alone first, so that what grows afterwards is adapters.
    let slots = Arc::new(Semaphore::new(8));
    let mut warm = JoinSet::new();
    for index in 0..24 {
        let (server, known, slots) = (Arc::clone(&server), Arc::clone(&known), Arc::clone(&slots));
        warm.spawn(async move {
            let _slot = slots.acquire().await.unwrap();
            let mut body = known[index % known.len()].body.clone();
            body["model"] = "base".into();
            server.answer("/v1/chat/completions", &body).await;
        });
    }
    warm.join_all().await;
    let before = server.resident();
    let mut requests = JoinSet::new();
    for index in 0..200 {
        let (server, known, slots) = (Arc::clone(&server), Arc::clone(&known), Arc::clone(&slots));
        requests.spawn(async move {
            let _slot = slots.acquire().await.unwrap();
            let known = &known[index * 7 % known.len()];
            let answer = server.answer("/v1/chat/completions", &known.body).await;
            assert_eq!(text(&answer), known.want, "{}", known.name);
            let resident = server.metric("chorus_adapter_resident_bytes").await;
            assert!(
                resident <= BUDGET as f64,
                "{resident} bytes of adapters in a budget of {BUDGET}"
            );
        });
    }
    while let Some(request) = requests.join_next().await {
        request.unwrap();
    }
    let resident = server.metric("chorus_adapter_resident_bytes").await;
    let grown = server.resident() as f64 - before as f64;
    let total = server.resident() as f64;
    assert!(
        (grown - resident).abs() <= total / 10.0,
        "the process grew by {grown} of {total} bytes for {resident} bytes of adapters"
    );
    let loads = server.metric("chorus_adapter_loads_total").await;
    let evictions = server.metric("chorus_adapter_evictions_total").await;
    assert!(loads >= 8.0 && evictions >= 6.0, "{loads} loads, {evictions} evictions");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_adapter_is_answered_under_constant_traffic_on_two_hot_ones() {
    let budget = BUDGET.to_string();
    let server = Arc::new(Server::start(&["--adapter-cache-bytes", &budget]));
    let known = Arc::new(known());
    let first = |name: &str| known.iter().position(|known| known.name == name).unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(());
    let mut hot = JoinSet::new();
    for name in ["support-json", "formal", "support-json", "formal"] {
        let (server, known, at) = (Arc::clone(&server), Arc::clone(&known), first(name));
        let stopped = stopped.clone();
        // Two of each, so that one of them is always leased.
        hot.spawn(async move {
            let mut answered = 0;
            while !stopped.has_changed().unwrap_or(true) {
                let answer = server.answer("/v1/chat/completions", &known[at].body).await;
                assert_eq!(text(&answer), known[at].want);
                answered += 1;
            }
            answered
        });
    }
    let begun = Instant::now();
    while server.metric("chorus_adapter_hits_total").await < 4.0 {
        assert!(begun.elapsed() < Duration::from_mins(1), "the hot adapters never got hot");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for name in ["sql", "german"] {
        let known = &known[first(name)];
        // The time a request may wait in line is the bound.
        let answer = server.answer("/v1/chat/completions", &known.body);
        let answer = timeout(Duration::from_secs(30), answer).await.expect("it is not starved");
        assert_eq!(text(&answer), known.want);
    }
    stop.send(()).unwrap();
    while let Some(answered) = hot.join_next().await {
        assert!(answered.unwrap() > 0, "and the hot ones went on");
    }
}
