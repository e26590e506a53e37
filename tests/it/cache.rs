//! More adapters than fit, as a normal state.

use std::{path::Path, sync::Arc, time::Duration};

use safetensors::{Dtype, tensor::TensorView};
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
                    .all(|m| m.as_f64().unwrap() > 0.05)
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
    let slots = Arc::new(Semaphore::new(8));
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
    let loads = server.metric("chorus_adapter_loads_total").await;
    let evictions = server.metric("chorus_adapter_evictions_total").await;
    assert!(loads >= 8.0 && evictions >= 6.0, "{loads} loads, {evictions} evictions");
}

/// Writes an adapter of this rank on all projections of the default base, 16 bits a number: 610 kB for each of its ranks.
fn write_large(folder: &Path, rank: usize, value: f32) {
    let numbers = half::bf16::from_f32(value).to_le_bytes().repeat(rank * 1536);
    let view = |shape: [usize; 2]| {
        let bytes = &numbers[..shape[0] * shape[1] * 2];
        TensorView::new(Dtype::BF16, shape.to_vec(), bytes).unwrap()
    };
    let projections = [
        ("self_attn.q_proj", 576, 576),
        ("self_attn.k_proj", 576, 192),
        ("self_attn.v_proj", 576, 192),
        ("self_attn.o_proj", 576, 576),
        ("mlp.gate_proj", 576, 1536),
        ("mlp.up_proj", 576, 1536),
        ("mlp.down_proj", 1536, 576),
    ];
    let mut tensors = Vec::new();
    for layer in 0..30 {
        for (projection, inputs, outputs) in projections {
            let name = format!("base_model.model.model.layers.{layer}.{projection}");
            tensors.push((format!("{name}.lora_A.weight"), view([rank, inputs])));
            tensors.push((format!("{name}.lora_B.weight"), view([outputs, rank])));
        }
    }
    let config = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 1,
        "target_modules": "all-linear", "bias": "none",
    });
    std::fs::create_dir(folder).unwrap();
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    let weights = folder.join("adapter_model.safetensors");
    safetensors::serialize_to_file(tensors, None, &weights).unwrap();
}

/// The adapters here take more than the rest of the process ever varies by.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_grows_and_shrinks_by_the_bytes_of_the_adapters_it_holds() {
    const RANKS: [(&str, usize); 3] = [("small", 64), ("middle", 96), ("large", 160)];
    // Room for any two of them, and never for all three.
    const BUDGET: u64 = 170_000_000;
    let folder = tempfile::tempdir().unwrap();
    for (name, rank) in RANKS {
        write_large(&folder.path().join(name), rank, 1.0 / rank as f32);
    }
    let (budget, adapters) = (BUDGET.to_string(), folder.path().to_str().unwrap());
    // Few pages for keys and values, so that all of them have been written when adapters come.
    let server = Server::start(&[
        "--adapters",
        adapters,
        "--adapter-cache-bytes",
        &budget,
        "--kv-bytes",
        "8MiB",
    ]);
    let ask = async |model: &str| {
        let prompt = "once upon a time ".repeat(20);
        let body = json!({"model": model, "prompt": prompt, "max_tokens": 64, "temperature": 0});
        server.answer("/v1/completions", &body).await;
    };
    for _ in 0..4 {
        ask("base").await;
    }
    let before = server.resident() as f64;
    let mut sizes = Vec::new();
    for (name, _) in RANKS.iter().cycle().take(8) {
        ask(name).await;
        // The answer holds its lease until it is sent, and nothing else goes on.
        let held = server.metric("chorus_adapter_resident_bytes").await;
        assert!(held <= BUDGET as f64, "{held} bytes of adapters in a budget of {BUDGET}");
        let grown = server.resident() as f64 - before;
        assert!(
            (grown - held).abs() <= held / 10.0,
            "the process grew by {grown} bytes for {held} bytes of adapters, {name} the last of them"
        );
        sizes.push(held);
    }
    assert!(sizes.windows(2).any(|pair| pair[1] < pair[0]), "it never shrank: {sizes:?}");
    assert!(server.metric("chorus_adapter_evictions_total").await >= 4.0);
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
