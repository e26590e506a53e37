//! What was used, as a bill would have it.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::{
    uploads::{files, question, times},
    world::{Server, shipped_adapters},
};

/// Requests, tokens of prompts and tokens of answers, by adapter.
type Used = BTreeMap<String, [u64; 3]>;

const COUNTS: [&str; 3] = ["requests", "prompt_tokens", "generated_tokens"];

impl Server {
    async fn used(&self) -> Used {
        let url = format!("{}/v1/admin/usage?by=total", self.url);
        let answer: Value = self.client.get(url).send().await.unwrap().json().await.unwrap();
        let rows = answer["data"].as_array().unwrap_or_else(|| panic!("{answer}")).iter();
        let asked = rows.filter(|row| row["requests"].as_u64() > Some(0));
        let row = |row: &Value| {
            let adapter = row["adapter"].as_str().unwrap_or("base").to_owned();
            (adapter, COUNTS.map(|count| row[count].as_u64().unwrap()))
        };
        asked.map(row).collect()
    }
}

/// What an answer says that it cost.
fn cost(answer: &Value) -> [u64; 3] {
    let usage = &answer["usage"];
    let count = |field: &str| usage[field].as_u64().unwrap();
    [1, count("prompt_tokens"), count("completion_tokens")]
}

/// How many journals there are beside a store, in the folder that is called after its id.
fn journals(store: &Path) -> usize {
    let homes = store.join("journals").read_dir().unwrap();
    homes.map(|home| home.unwrap().path().read_dir().unwrap().count()).sum()
}

fn add(sum: &mut [u64; 3], more: [u64; 3]) {
    sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_says_what_the_answers_said() {
    let store = tempfile::tempdir().unwrap();
    let arguments = ["--store", store.path().to_str().unwrap()];
    let server = Server::start(&arguments);
    let mut expected = Used::new();
    for (model, choices) in [("base", 1), ("pirate", 1), ("pirate", 3), ("german", 2)] {
        let mut body = question(model, 6);
        body["n"] = choices.into();
        body["temperature"] = 1.into();
        let answer = server.answer("/v1/chat/completions", &body).await;
        add(expected.entry(model.to_owned()).or_default(), cost(&answer));
    }
    let many = json!({"model": "base", "prompt": ["One", "Two and"], "max_tokens": 3});
    let answer = server.answer("/v1/completions", &many).await;
    add(expected.get_mut("base").unwrap(), cost(&answer));
    // A stop string ends a choice before the engine does.
    let stopped = json!({"model": "base", "prompt": "A, B, C, D, E", "max_tokens": 60,
        "stop": ["H"], "temperature": 0});
    let answer = server.answer("/v1/completions", &stopped).await;
    add(expected.get_mut("base").unwrap(), cost(&answer));
    assert_eq!(server.used().await, expected);

    let mut streamed = question("german", 300);
    streamed["stream"] = true.into();
    streamed["ignore_eos"] = true.into();
    let response = server.post("/v1/chat/completions", &streamed).await;
    let mut chunks = response.bytes_stream();
    for _ in 0..3 {
        chunks.next().await.unwrap().unwrap();
    }
    drop(chunks);
    let cut_off = async {
        while server.used().await["german"][0] < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), cut_off).await.expect("it is noted");
    let used = server.used().await;
    let generated = used["german"][2] - expected["german"][2];
    assert!((1..300).contains(&generated), "{generated} tokens for a client that has left");

    let uploaded = files(&shipped_adapters().join("pirate"));
    let bytes: usize = uploaded.iter().map(Vec::len).sum();
    assert_eq!(server.put("mine", uploaded).await.status(), 201);
    let url = format!("{}/v1/usage?format=csv", server.url);
    let csv = server.client.get(url).send().await.unwrap().text().await.unwrap();
    assert!(csv.starts_with("begin,tenant,adapter,version,requests,"), "{csv}");
    assert!(csv.contains(&format!(",default,mine,1,0,0,0,0,1,{bytes}\r\n")), "{csv}");
    let label = "{tenant=\"default\",adapter=\"pirate\"}";
    let metric = server.metric(&format!("chorus_usage_generated_tokens_total{label}")).await;
    assert_eq!(metric.to_string(), expected["pirate"][2].to_string());

    server.signal("TERM");
    assert!(server.wait().success());
    assert_eq!(journals(store.path()), 0, "it is in the store");
    assert_eq!(Server::start(&arguments).used().await, used);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_process_that_is_killed_every_answered_request_is_in_the_ledger_once() {
    const ASKERS: u64 = 6;
    const MOST_TOKENS: u64 = 4;
    let store = tempfile::tempdir().unwrap();
    let arguments = ["--store", store.path().to_str().unwrap()];
    let mut before = [0; 3];
    for round in 0..times(3, 40) {
        let server = Arc::new(Server::start(&arguments));
        let answered = Arc::new(Mutex::new([0; 3]));
        let asked = Arc::new(AtomicU64::new(0));
        let askers = (0..ASKERS).map(|_| {
            let (server, answered, asked) =
                (Arc::clone(&server), Arc::clone(&answered), Arc::clone(&asked));
            tokio::spawn(async move {
                let body = question("pirate", usize::try_from(MOST_TOKENS).unwrap());
                loop {
                    asked.fetch_add(1, Ordering::SeqCst);
                    let url = format!("{}/v1/chat/completions", server.url);
                    let Ok(response) = server.client.post(url).json(&body).send().await else {
                        return;
                    };
                    let Ok(answer) = response.json::<Value>().await else { return };
                    add(&mut answered.lock().unwrap(), cost(&answer));
                }
            })
        });
        let askers: Vec<_> = askers.collect();
        tokio::time::sleep(Duration::from_millis(300 + 37 * round as u64)).await;
        server.signal("KILL");
        futures_util::future::join_all(askers).await;
        drop(server);
        let server = Server::start(&arguments);
        // What the process before has left counts at once, and is put into the store in the background.
        let at_once = server.used().await;
        let settled = async {
            while journals(store.path()) > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), settled).await.expect("it is found");
        let used = server.used().await;
        assert_eq!(at_once, used);
        let used = used.get("pirate").copied().unwrap_or_default();
        let [requests, prompt, generated] =
            [0, 1, 2].map(|count: usize| used[count] - before[count]);
        let answered = *answered.lock().unwrap();
        let cut_off = asked.load(Ordering::SeqCst) - answered[0];
        assert!(cut_off <= ASKERS);
        assert!((answered[0]..=answered[0] + cut_off).contains(&requests), "{used:?} {answered:?}");
        let extra = requests - answered[0];
        assert_eq!(prompt * answered[0], requests * answered[1], "one prompt for each");
        let most = answered[2] + extra * MOST_TOKENS;
        assert!((answered[2]..=most).contains(&generated), "{used:?} {answered:?}");
        before = used;
    }
}
