//! An adapter's life as a customer sees it: uploaded, used, replaced, deleted, and still there after a crash.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use chorus::lora::Digest;
use futures_util::{StreamExt as _, future::join_all};
use reqwest::{
    Response, StatusCode,
    multipart::{Form, Part},
};
use serde_json::{Value, json};

use crate::{
    reference::{LOGPROB_NOISE, MARGIN, REFUSED, Reference},
    world::{Server, fixtures, folders, json, name, shipped_adapters},
};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// How often what takes long is done: seldom, or as often as it takes to be sure (`CHORUS_THOROUGH`).
#[expect(clippy::disallowed_methods, reason = "a test's own setting")]
pub(crate) fn times(seldom: usize, often: usize) -> usize {
    if std::env::var_os("CHORUS_THOROUGH").is_some() { often } else { seldom }
}

/// Both files of a folder.
pub(crate) fn files(folder: &Path) -> [Vec<u8>; 2] {
    [CONFIG, WEIGHTS].map(|file| std::fs::read(folder.join(file)).unwrap())
}

/// A small adapter that works, different for each number.
pub(crate) fn mini(number: u32) -> [Vec<u8>; 2] {
    let [config, mut weights] = files(&fixtures().join("bad/control-good-mini"));
    let last = weights.len() - 4;
    let value = 0.01 + number as f32 / 1_000_000.0;
    weights[last..].copy_from_slice(&value.to_le_bytes());
    [config, weights]
}

fn digest([config, weights]: &[Vec<u8>; 2]) -> String {
    format!("sha256:{}", Digest::of(config, weights))
}

impl Server {
    pub(crate) async fn put(&self, name: &str, files: [Vec<u8>; 2]) -> Response {
        let url = format!("{}/v1/adapters/{name}", self.url);
        self.client.put(url).multipart(form(files)).send().await.unwrap()
    }

    async fn act(&self, name: &str, action: &str, body: Value) -> Response {
        self.post(&format!("/v1/adapters/{name}/{action}"), &body).await
    }

    async fn delete(&self, path: &str) -> Response {
        self.client.delete(format!("{}/v1/adapters/{path}", self.url)).send().await.unwrap()
    }

    async fn show(&self, name: &str) -> (StatusCode, Value) {
        let url = format!("{}/v1/adapters/{name}", self.url);
        let response = self.client.get(url).send().await.unwrap();
        (response.status(), response.json().await.unwrap())
    }

    /// What a model answers, and what the answer says it is from.
    async fn says(&self, model: &str) -> (String, String) {
        let body = question(model, 24);
        let response = self.post("/v1/chat/completions", &body).await;
        assert_eq!(response.status(), 200, "{model}");
        let from = response.headers()["x-chorus-adapter"].to_str().unwrap().to_owned();
        let answer: Value = response.json().await.unwrap();
        (answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned(), from)
    }
}

pub(crate) fn question(model: &str, max_tokens: usize) -> Value {
    json!({
        "model": model, "max_tokens": max_tokens, "temperature": 0,
        "messages": [{"role": "user", "content": "How do I cook rice?"}],
    })
}

/// The same, to be answered as it grows.
fn streamed(model: &str, max_tokens: usize) -> Value {
    let mut question = question(model, max_tokens);
    question["stream"] = true.into();
    question
}

/// Both files as a form.
pub(crate) fn form([config, weights]: [Vec<u8>; 2]) -> Form {
    let part = |bytes, file| Part::bytes(bytes).file_name(file);
    Form::new().part(CONFIG, part(config, CONFIG)).part(WEIGHTS, part(weights, WEIGHTS))
}

pub(crate) async fn body(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    (status, response.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_is_used_a_moment_later_replaced_rolled_back_and_deleted() {
    let server = Server::start(&[]);
    let pirate = files(&shipped_adapters().join("pirate"));
    let (status, created) = body(server.put("mine", pirate.clone()).await).await;
    assert_eq!(status, 201, "{created}");
    assert_eq!(
        (&created["version"], &created["digest"], &created["status"], &created["parent"]),
        (&json!(1), &json!(digest(&pirate)), &json!("active"), &json!("smollm2-135m-instruct"))
    );
    let (mine, from) = server.says("mine").await;
    assert_eq!(from, format!("mine@v1;{}", digest(&pirate).replace(':', "=")));
    let (shipped, _) = server.says("pirate").await;
    let (base, _) = server.says("base").await;
    assert_eq!(mine, shipped);
    assert_ne!(mine, base);

    let german = files(&shipped_adapters().join("german"));
    let (status, second) = body(server.put("mine", german).await).await;
    assert_eq!((status, &second["version"]), (201, &json!(2)));
    let (other, from) = server.says("mine").await;
    assert!(from.starts_with("mine@v2;") && other != mine, "{from}: {other}");
    assert_eq!(server.says("mine@v1").await.0, mine);
    let (status, again) = body(server.act("mine", "activate", json!({"version": 1})).await).await;
    assert_eq!((status, &again["version"]), (200, &json!(1)));
    assert_eq!(server.says("mine").await.0, mine);

    let (status, gone) = body(server.delete("mine?version=2").await).await;
    assert_eq!((status, &gone["deleted"]), (200, &json!(true)));
    let url = format!("{}/v1/adapters/mine/files/{WEIGHTS}", server.url);
    let bytes = server.client.get(url).send().await.unwrap().bytes().await.unwrap();
    assert!(bytes == pirate[1], "the tenant's own bytes");
    assert_eq!(server.delete("mine").await.status(), 200);
    let answer = server.post("/v1/chat/completions", &question("mine", 4)).await;
    assert_eq!(answer.status(), 404);
    assert_eq!(server.delete("mine").await.status(), 404);
    assert_eq!(server.says("pirate").await.0, shipped, "the folder has the same bytes still");
    let (_, third) = body(server.put("mine", pirate).await).await;
    assert_eq!(third["version"], 3, "numbers are not given again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_bad_adapter_is_refused_with_its_rule() {
    let server = Server::start(&[]);
    let (before, _) = server.says("base").await;
    let cases = json(&fixtures().join("bad/cases.json"));
    for case in cases.as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let folder = fixtures().join("bad").join(name);
        let mut form = Form::new();
        let mut entries: Vec<_> =
            std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            let file = path.file_name().unwrap().to_str().unwrap().to_owned();
            let mut bytes = std::fs::read(&path).unwrap();
            if let (CONFIG, Some(len)) = (&*file, case["config_padded_to"].as_u64()) {
                bytes.resize(usize::try_from(len).unwrap(), b' ');
            }
            form = form.part(file.clone(), Part::bytes(bytes).file_name(file));
        }
        let url = format!("{}/v1/adapters/t", server.url);
        let response = server.client.put(url).multipart(form).send().await.unwrap();
        let (status, answer) = body(response).await;
        let error = &answer["error"];
        let expect = case["expect"].as_str().unwrap();
        // What it trains besides is supported here, so it must be applied: the trial has seen to that.
        if expect == "ok" || name == "unsupported-lora-bias" {
            assert_eq!(status, 201, "{name}: {answer}");
            assert_eq!(server.delete("t").await.status(), 200);
            continue;
        }
        let rule = RULES.iter().find(|(case, ..)| *case == name);
        let (_, wanted, code) = rule.unwrap_or_else(|| panic!("{name} has no rule: {answer}"));
        assert_eq!((status, &error["code"]), (*wanted, &json!(code)), "{name}: {answer}");
        let message = error["message"].as_str().unwrap().to_lowercase();
        let words = case["message_should_mention"].as_str().unwrap().to_lowercase();
        assert!(words.split('/').any(|word| message.contains(word.trim())), "{name}: {message}");
        assert!(!message.contains(fixtures().to_str().unwrap()), "{message}");
    }
    assert_eq!(server.show("t").await.0, 404);
    assert_eq!(server.says("base").await.0, before);
    assert!(!Path::new("/tmp/PICKLE_WAS_EXECUTED").exists());
}

/// Status and rule for each bad adapter.
const RULES: [(&str, u16, &str); 75] = [
    ("missing-config", 422, "missing_file"),
    ("missing-weights", 422, "missing_file"),
    ("empty-dir-file", 422, "not_safetensors"),
    ("eight-bytes-only", 422, "truncated"),
    ("truncated-safetensors", 422, "truncated"),
    ("lfs-pointer", 422, "not_safetensors"),
    ("pickle-bin", 422, "pickle"),
    ("html-as-weights", 422, "not_safetensors"),
    ("header-length-huge", 422, "truncated"),
    ("header-length-200mb", 422, "truncated"),
    ("header-not-json", 422, "unreadable_safetensors"),
    ("header-overlapping-offsets", 422, "tensor_offsets"),
    ("header-offset-beyond-file", 422, "tensor_offsets"),
    ("header-offsets-reversed", 422, "tensor_offsets"),
    ("header-negative-offset", 422, "header_syntax"),
    ("header-shape-overflow", 422, "tensor_bytes"),
    ("header-duplicate-keys", 422, "header_repeats"),
    ("header-deep-json", 422, "header_syntax"),
    ("header-30k-empty-tensors", 422, "header_syntax"),
    ("dtype-i64", 422, "unsupported_dtype"),
    ("nan-weights", 422, "non_finite_weight"),
    ("inf-weights", 422, "non_finite_weight"),
    ("extreme-finite-weights", 422, "extreme_weight"),
    ("wrong-hidden-size", 422, "shape_mismatch"),
    ("transposed-shapes", 422, "shape_mismatch"),
    ("lora-a-without-b", 422, "missing_tensor"),
    ("rank-mismatch-config", 422, "rank_mismatch"),
    ("rank-zero", 422, "config_value"),
    ("rank-negative", 422, "config_value"),
    ("rank-4096", 422, "rank_too_high"),
    ("rank-float", 422, "config_value"),
    ("targets-do-not-exist", 422, "unknown_module"),
    ("gpt2-names", 422, "unknown_module"),
    ("layer-index-overflow", 422, "unknown_module"),
    ("extra-tensors", 422, "superfluous_tensor"),
    ("missing-tensors", 422, "missing_tensor"),
    ("no-lora-tensors", 422, "missing_tensor"),
    ("unprefixed-names", 422, "unprefixed_tensor"),
    ("config-bad-json", 422, "config_syntax"),
    ("config-empty", 422, "config_empty"),
    ("config-is-list", 422, "config_not_an_object"),
    ("config-deep-json", 422, "config_syntax"),
    ("config-utf16", 422, "config_encoding"),
    ("config-no-r", 422, "config_missing_key"),
    ("config-no-peft-type", 422, "config_missing_key"),
    ("config-5mb", 413, "file_too_large"),
    ("alpha-infinity", 422, "config_syntax"),
    ("alpha-nan", 422, "config_syntax"),
    ("alpha-1e400", 422, "config_syntax"),
    ("alpha-negative", 422, "config_value"),
    ("alpha-1e30", 422, "scale_out_of_range"),
    ("alpha-string", 422, "config_value"),
    ("alpha-zero", 422, "config_value"),
    ("rank-pattern-disagrees", 422, "rank_mismatch"),
    ("rank-pattern-bad-regex", 422, "unusable_pattern"),
    ("target-regex-redos", 422, "config_conflict"),
    ("unsupported-layer-replication", 422, "unsupported_feature"),
    ("unsupported-alora", 422, "unsupported_feature"),
    ("unsupported-pissa", 422, "unsupported_initialisation"),
    ("unsupported-trainable-tokens", 422, "unsupported_feature"),
    ("unsupported-target-parameters", 422, "unsupported_feature"),
    ("unsupported-qalora", 422, "unsupported_feature"),
    ("dora-without-magnitude", 422, "missing_tensor"),
    ("magnitude-without-dora", 422, "superfluous_tensor"),
    ("modules-to-save-missing", 422, "missing_tensor"),
    ("mlx-format", 422, "mlx_adapter"),
    ("peft-type-adalora", 422, "unsupported_peft_type"),
    ("peft-type-boft", 422, "unsupported_peft_type"),
    ("peft-type-ia3", 422, "unsupported_peft_type"),
    ("peft-type-loha", 422, "unsupported_peft_type"),
    ("peft-type-lokr", 422, "unsupported_peft_type"),
    ("peft-type-oft", 422, "unsupported_peft_type"),
    ("peft-type-prefix-tuning", 422, "unsupported_peft_type"),
    ("peft-type-prompt-tuning", 422, "unsupported_peft_type"),
    ("peft-type-vera", 422, "unsupported_peft_type"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_upload_is_refused() {
    let server = Server::start(&[]);
    let put = |name: &str| server.client.put(format!("{}/v1/adapters/{name}", server.url));
    let both = || form(mini(0));
    let part = |file: &'static str| Part::bytes(mini(0)[0].clone()).file_name(file);
    let raw = |body: String| {
        put("a").header("content-type", "multipart/form-data; boundary=x").body(body)
    };
    let null = Value::Null;
    for (request, status, code) in [
        (put("a").json(&json!({})), 415, null.clone()),
        (put("a").body("hello"), 415, null.clone()),
        (put("a").header("content-type", "multipart/form-data").body("x"), 415, null.clone()),
        (put("a").multipart(both()).header("content-encoding", "gzip"), 415, null.clone()),
        (raw(String::new()), 400, null.clone()),
        (raw("--x\r\nno header".to_owned()), 400, null.clone()),
        (raw("x".repeat(3 << 20)), 400, null.clone()),
        (raw(format!("--x\r\n{}", "y: z\r\n".repeat(1 << 20))), 400, null.clone()),
        (raw("--x--\r\n".to_owned()), 422, json!("missing_file")),
        (put("a").multipart(Form::new().part(CONFIG, part(CONFIG))), 422, json!("missing_file")),
        (put("a").multipart(both().part(CONFIG, part(CONFIG))), 400, json!("repeated_file")),
        (put("a").multipart(both().part("x", part("README.md"))), 422, json!("unexpected_file")),
        (put("a").multipart(both().part("x", part("adapter_model.bin"))), 422, json!("pickle")),
        (put("a").multipart(both().text("x", "y".repeat(1 << 20))), 400, null.clone()),
        (put("a").multipart(both()).query(&[("activate", "perhaps")]), 400, null.clone()),
        (put("a").multipart(both()).query(&[("force", "true")]), 400, null.clone()),
        (put("base").multipart(both()), 400, json!("invalid_adapter_name")),
        (put("smollm2-135m-instruct").multipart(both()), 400, json!("invalid_adapter_name")),
        (put("..%2Fa").multipart(both()), 400, json!("invalid_adapter_name")),
        (put("%ff").multipart(both()), 400, null.clone()),
        (put("a").multipart(both()).header("if-match", "v1"), 400, null.clone()),
        (
            put("a").multipart(both()).header("if-match", "\"v1\""),
            412,
            json!("precondition_failed"),
        ),
    ] {
        let shown = format!("{request:?}");
        let (found, answer) = body(request.send().await.unwrap()).await;
        assert_eq!((found, &answer["error"]["code"]), (status, &code), "{shown}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_is_what_it_is_however_it_is_written() {
    let server = Server::start(&[]);
    let put = |name: &str| server.client.put(format!("{}/v1/adapters/{name}", server.url));
    // Text fields are passed over, and a part needs no file name.
    let odd = form(mini(0)).text("comment", "hello");
    assert_eq!(put("a").multipart(odd).send().await.unwrap().status(), 201);
    let [config, weights] = mini(0).map(Part::bytes);
    let plain = Form::new().part(WEIGHTS, weights).part(CONFIG, config);
    let response = put("a").multipart(plain).header("if-match", "\"v1\"").send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["etag"], "\"v1\"");
    let again = put("a").multipart(form(mini(0))).header("if-none-match", "*");
    assert_eq!(again.send().await.unwrap().status(), 412);
    let [config, mut untrained] = mini(0);
    let header = usize::try_from(u64::from_le_bytes(*untrained.first_chunk().unwrap())).unwrap();
    untrained[8 + header..].fill(0);
    let (status, answer) = body(server.put("b", [config, untrained]).await).await;
    assert_eq!((status, &answer["error"]["code"]), (422, &json!("no_effect")), "{answer}");
}

/// A stream goes on with the version it began with, whatever becomes of the name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_answer_is_not_touched_by_what_happens_to_the_name() {
    let server = Server::start(&["--adapter-cache-bytes", "64MiB"]);
    let voices = ["pirate", "sentiment"].map(|name| files(&shipped_adapters().join(name)));
    let whole = async |model: &str| {
        let response = server.post("/v1/chat/completions", &streamed(model, 40)).await;
        assert_eq!(response.status(), 200);
        spoken(response).await
    };
    server.put("x", voices[0].clone()).await;
    let said = [whole("x").await, whole("sentiment").await];
    assert_ne!(said[0], said[1]);
    for turn in 0..times(6, 500) {
        let (now, next) = (turn % 2, (turn + 1) % 2);
        let mut stream =
            server.post("/v1/chat/completions", &streamed("x", 40)).await.bytes_stream();
        let mut bytes = stream.next().await.unwrap().unwrap().to_vec();
        if turn % 3 == 2 {
            assert_eq!(server.delete("x").await.status(), 200);
            let answer = server.post("/v1/chat/completions", &question("x", 1)).await;
            assert_eq!(answer.status(), 404, "turn {turn}");
        }
        let put = server.put("x", voices[next].clone()).await;
        assert!(put.status().is_success(), "turn {turn}: {}", put.status());
        assert_eq!(whole("x").await, said[next], "turn {turn}: the new one at once");
        while let Some(piece) = stream.next().await {
            bytes.extend_from_slice(&piece.unwrap());
        }
        assert_eq!(text_of(&bytes), said[now], "turn {turn}: the old one to its end");
    }
}

async fn spoken(response: Response) -> String {
    text_of(&response.bytes().await.unwrap())
}

/// The text of a stream's events.
fn text_of(bytes: &[u8]) -> String {
    let events = std::str::from_utf8(bytes).unwrap().lines();
    let data =
        events.filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    let text = |data: &str| {
        let event: Value = serde_json::from_str(data).unwrap();
        assert!(event["error"].is_null(), "{event}");
        event["choices"][0]["delta"]["content"].as_str().unwrap_or("").to_owned()
    };
    data.map(text).collect()
}

/// The state of one name as it was last acknowledged, and what may have come after it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Known {
    versions: BTreeMap<u64, String>,
    active: Option<u64>,
}

impl Known {
    fn of(status: StatusCode, shown: &Value) -> Self {
        if status == 404 {
            return Self::default();
        }
        let versions = shown["versions"].as_array().unwrap().iter();
        let entry = |version: &Value| {
            (version["version"].as_u64().unwrap(), version["digest"].as_str().unwrap().to_owned())
        };
        let active = (shown["status"] == "active").then(|| shown["version"].as_u64().unwrap());
        Self { versions: versions.map(entry).collect(), active }
    }
}

/// Where nobody was told a version's number.
const UNTOLD: u64 = u64::MAX;

/// One of the names that are changed until the server is killed.
struct Tested {
    name: String,
    known: Known,
    /// What the change in flight would have made of it.
    perhaps: Option<Known>,
    /// The next adapter's number: no two have the same bytes.
    next: u32,
}

impl Tested {
    /// Finds what was acknowledged or would have come of the change in flight, and nothing between; and all of it answers.
    async fn check(&mut self, server: &Server) {
        let (status, shown) = server.show(&self.name).await;
        let found = Known::of(status, &shown);
        let (name, perhaps) = (&self.name, self.perhaps.take());
        assert!(
            found == self.known || Some(&found) == perhaps.as_ref(),
            "{name} is {found:?}, was {:?}, perhaps {perhaps:?}",
            self.known
        );
        self.known = found;
        for (version, digest) in &self.known.versions {
            let (begun, model) = (Instant::now(), format!("{name}@v{version}"));
            let (_, from) = server.says(&model).await;
            assert_eq!(from, format!("{model};{}", digest.replace(':', "=")));
            assert!(begun.elapsed() < Duration::from_secs(5));
        }
    }

    /// A change, and what comes of it.
    fn change(&mut self, server: &Server, step: u32) -> (reqwest::RequestBuilder, Known) {
        let url = format!("{}/v1/adapters/{}", server.url, self.name);
        let mut next = self.known.clone();
        let oldest = self.known.versions.keys().next().copied();
        match (step % 4, oldest) {
            (1, Some(oldest)) => {
                next.active = Some(oldest);
                let body = json!({ "version": oldest });
                (server.client.post(url + "/activate").json(&body), next)
            }
            (3, Some(_)) if step % 8 == 7 || self.known.versions.len() > 3 => {
                (server.client.delete(url), Known::default())
            }
            _ => {
                let files = mini(self.next);
                self.next += 3;
                next.versions.insert(UNTOLD, digest(&files));
                next.active = Some(UNTOLD);
                (server.client.put(url).multipart(form(files)), next)
            }
        }
    }

    /// Changes it until the server is gone, and counts what is acknowledged.
    async fn go_on(&mut self, server: &Server, acknowledged: &AtomicUsize) {
        for step in 0.. {
            let (request, mut next) = self.change(server, step);
            let answer = async { request.send().await?.json::<Value>().await };
            let Ok(answer) = answer.await else {
                self.perhaps = Some(next);
                return;
            };
            assert!(answer["error"].is_null(), "{answer}");
            next.tell(answer["version"].as_u64());
            self.known = next;
            acknowledged.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Known {
    /// The number that an upload was given.
    fn tell(&mut self, number: Option<u64>) {
        if let (Some(digest), Some(number)) = (self.versions.remove(&UNTOLD), number) {
            self.versions.insert(number, digest);
            self.active = Some(number);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kill_and_nothing_is_half_there() {
    let store = tempfile::tempdir().unwrap();
    let arguments = ["--store", store.path().to_str().unwrap()];
    let mut names = [0, 1, 2].map(|number| Tested {
        name: format!("n{number}"),
        known: Known::default(),
        perhaps: None,
        next: number,
    });
    let mut all = 0;
    let rounds = times(5, 100);
    for round in 0..rounds {
        let server = Server::start(&arguments);
        for name in &mut names {
            name.check(&server).await;
        }
        let acknowledged = AtomicUsize::new(0);
        // Anywhere in what goes on: in half of the rounds from the first write on, in the others from the first answer on.
        let after = Duration::from_millis(u64::try_from(3 + (round * 37) % 211).unwrap());
        let kill = async {
            while round % 2 == 1 && acknowledged.load(Ordering::Relaxed) == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(after).await;
            server.signal("KILL");
        };
        let changes = join_all(names.iter_mut().map(|name| name.go_on(&server, &acknowledged)));
        tokio::join!(changes, kill);
        all += acknowledged.into_inner();
        for Tested { name, perhaps, .. } in &mut names {
            // The answer is lost, so the number is read from the records.
            if let Some(perhaps) = perhaps {
                perhaps.tell(newest(store.path(), name));
            }
        }
    }
    assert!(all >= rounds / 2, "only {all} changes were acknowledged");
    println!("{all} changes were acknowledged, {rounds} processes killed");
}

/// The greatest number that a name has in the records on disk.
fn newest(store: &Path, name: &str) -> Option<u64> {
    let files = std::fs::read_dir(store.join("logs/adapters")).ok()?;
    let paths = files.map(|file| file.unwrap().path());
    let records = paths.filter(|path| path.extension().is_some_and(|end| end == "json"));
    let number = |path: PathBuf| {
        let record = json(&path)["record"].clone();
        (record["name"] == name).then(|| record["change"]["stored"]["version"].as_u64())?
    };
    records.filter_map(number).max()
}

/// Bits, lengths, offsets, types and sizes of a good adapter changed at random: no panic, no 5xx, no leak.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mutated_uploads_do_no_harm() {
    // Memory for keys and values comes into use with time: little of it, so that anything else that grows is seen.
    let server = Server::start(&["--log", "error", "--kv-bytes", "16MiB"]);
    let [config, weights] = mini(1);
    let (base, good) = (server.says("base").await, server.says("pirate").await);
    let mut random = Random(0x0dd5_eed5);
    let mut refused = 0;
    let mut before = 0;
    let all = times(200, 10_000);
    for turn in 0..all {
        if turn == all / 4 {
            before = server.resident();
        }
        let (mut config, mut weights) = (config.clone(), weights.clone());
        let mut headers = reqwest::header::HeaderMap::new();
        match random.below(8) {
            0 => random.flip(&mut weights),
            1 => random.flip(&mut config),
            2 => weights.truncate(random.below(weights.len())),
            3 => weights[..8].copy_from_slice(&random.next().to_le_bytes()),
            4 => random.edit_header(&mut weights),
            5 => random.edit_number(&mut config),
            6 => config = "{\"a\":".repeat(random.below(200_000)).into_bytes(),
            _ => {
                let value = format!("multipart/form-data; boundary={}", random.next());
                headers.insert("content-type", value.parse().unwrap());
            }
        }
        let url = format!("{}/v1/adapters/m", server.url);
        let request = server.client.put(url).multipart(form([config, weights]));
        let mut request = request.build().unwrap();
        request.headers_mut().extend(headers);
        let response = server.client.execute(request).await.unwrap();
        let status = response.status();
        let answer = response.text().await.unwrap();
        assert!(!status.is_server_error(), "turn {turn}: {status} {answer}");
        if status.is_success() {
            let answer = server
                .post("/v1/completions", &json!({"model": "m", "prompt": "a", "max_tokens": 2}))
                .await;
            assert!(answer.status().is_success(), "turn {turn}: {}", answer.status());
            assert_eq!(server.delete("m").await.status(), 200);
        } else {
            refused += 1;
        }
    }
    assert!(refused > all / 4, "{refused} of {all} were refused");
    let grown = server.resident().saturating_sub(before);
    assert!(grown < 48 << 20, "{grown} bytes more are resident");
    assert_eq!((server.says("base").await, server.says("pirate").await), (base, good));
}

/// Marsaglia's xorshift: the same changes each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }

    fn flip(&mut self, bytes: &mut [u8]) {
        for _ in 0..=self.below(8) {
            let at = self.below(bytes.len());
            bytes[at] ^= 1 << self.below(8);
        }
    }

    /// Another digit, dtype letter or bracket somewhere in the header.
    fn edit_header(&mut self, weights: &mut [u8]) {
        let header = usize::try_from(u64::from_le_bytes(*weights.first_chunk().unwrap())).unwrap();
        for _ in 0..=self.below(3) {
            let at = 8 + self.below(header);
            weights[at] = b"0123456789FBI[]{},:\"-"[self.below(21)];
        }
    }

    /// Another number somewhere in the configuration.
    fn edit_number(&mut self, config: &mut Vec<u8>) {
        let text = String::from_utf8(config.clone()).unwrap();
        let numbers = [
            "-1",
            "0",
            "1e400",
            "4294967296",
            "18446744073709551616",
            "0.5",
            "null",
            "\"8\"",
            "[]",
        ];
        let digits: Vec<_> = text.match_indices(|c: char| c.is_ascii_digit()).collect();
        let (at, digit) = digits[self.below(digits.len())];
        let new = numbers[self.below(numbers.len())];
        *config = format!("{}{new}{}", &text[..at], &text[at + digit.len()..]).into_bytes();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_server_takes_in_another_serves() {
    let store = tempfile::tempdir().unwrap();
    let arguments = ["--store", store.path().to_str().unwrap(), "--store-refresh", "200ms"];
    let (one, two) = (Server::start(&arguments), Server::start(&arguments));
    let pirate = files(&shipped_adapters().join("pirate"));
    assert_eq!(one.put("x", pirate.clone()).await.status(), 201);
    let (said, from) = two.says("x").await;
    assert_eq!((said, from), one.says("x").await, "at once, because the name was missed");
    let german = files(&shipped_adapters().join("german"));
    assert_eq!(two.put("x", german).await.status(), 201);
    let begun = Instant::now();
    while !one.says("x").await.1.starts_with("x@v2;") {
        assert!(begun.elapsed() < Duration::from_secs(5), "a change is seen within the refresh");
    }
    assert_eq!(one.delete("x").await.status(), 200);
    let begun = Instant::now();
    while two.show("x").await.0 != 404 {
        assert!(begun.elapsed() < Duration::from_secs(5), "a deletion too");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let answer = two.post("/v1/chat/completions", &question("x", 1)).await;
    assert_eq!(answer.status(), 404);
}

/// What `chorus adapter` prints and how it ends.
fn command(server: &Server, arguments: &[&str]) -> (bool, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_chorus"))
        .arg("adapter")
        .args(arguments)
        .args(["--url", &server.url])
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

/// It was a bare `internal_error`, and a folder with one of two files was left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_the_store_has_lost_are_said_to_be_so_and_no_half_of_them_is_kept() {
    let (store, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(&["--store", store.path().to_str().unwrap(), "--log", "off"]);
    assert_eq!(server.put("mine", mini(1)).await.status(), 201);
    let blobs = store.path().join("blobs").read_dir().unwrap().map(|blob| blob.unwrap().path());
    let weights = blobs.max_by_key(|blob| blob.metadata().unwrap().len()).unwrap();
    let kept = std::fs::read(&weights).unwrap();
    std::fs::remove_file(&weights).unwrap();
    let url = format!("{}/v1/adapters/mine/files/adapter_model.safetensors", server.url);
    let (status, answer) = body(server.client.get(url).send().await.unwrap()).await;
    assert_eq!((status, &answer["error"]["code"]), (500, &json!("adapter_unavailable")));
    let copy = out.path().join("copy");
    let get = ["get", "mine", copy.to_str().unwrap()];
    let (success, text) = command(&server, &get);
    assert!(!success && text.contains("adapter_unavailable"), "{text}");
    assert!(!copy.exists(), "one of two files");
    std::fs::write(&weights, kept).unwrap();
    let (success, text) = command(&server, &get);
    assert!(success && files(&copy) == mini(1), "{text}");
}

/// Uploads went into the empty place, were acknowledged, and left a gap in the log with which no server started again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_whose_folder_goes_away_is_waited_for() {
    let root = tempfile::tempdir().unwrap();
    let (place, elsewhere) = (root.path().join("store"), root.path().join("elsewhere"));
    let arguments = ["--store", place.to_str().unwrap(), "--log", "off"];
    let server = Server::start(&arguments);
    assert!(server.plan.contains("new: there was none"), "{}", server.plan);
    assert_eq!(server.put("warm", mini(1)).await.status(), 201);
    assert_eq!(server.post("/v1/chat/completions", &question("warm", 2)).await.status(), 200);
    for emptied in [false, true] {
        std::fs::rename(&place, &elsewhere).unwrap();
        if emptied {
            std::fs::create_dir(&place).unwrap();
        }
        let response = server.put("lost", mini(2)).await;
        assert!(response.headers().contains_key("retry-after"));
        let (status, answer) = body(response).await;
        assert_eq!((status, &answer["error"]["code"]), (503, &json!("store_unavailable")));
        assert_eq!(server.delete("warm").await.status(), 503);
        assert_eq!(server.post("/v1/chat/completions", &question("warm", 2)).await.status(), 200);
        if emptied {
            assert_eq!(place.read_dir().unwrap().count(), 0, "nothing is made in its place");
            std::fs::remove_dir(&place).unwrap();
        }
        assert!(!place.exists(), "nothing is made in its place");
        std::fs::rename(&elsewhere, &place).unwrap();
        let name = format!("back-{emptied}");
        assert_eq!(server.put(&name, mini(3)).await.status(), 201);
    }
    assert_eq!(place.join("logs/adapters").read_dir().unwrap().count(), 3);
    drop(server);
    let again = Server::start(&arguments);
    assert!(!again.plan.contains("new: there was none"), "{}", again.plan);
    for name in ["warm", "back-false", "back-true"] {
        assert_eq!(again.post("/v1/chat/completions", &question(name, 2)).await.status(), 200);
    }
}

#[test]
fn the_command_line_does_all_of_it() {
    let server = Server::start(&[]);
    let folder = shipped_adapters().join("pirate");
    let folder = folder.to_str().unwrap();
    let done = |arguments: &[&str], shows: &str| {
        let (success, text) = command(&server, arguments);
        assert!(success && text.contains(shows), "{arguments:?}: {text}");
        text
    };
    let refused = |arguments: &[&str], shows: &str| {
        let (success, text) = command(&server, arguments);
        assert!(
            !success && text.contains(shows) && text.lines().count() == 1,
            "{arguments:?}: {text}"
        );
    };
    done(&["push", "mine", folder, "--new"], "mine ");
    refused(&["push", "mine", folder, "--new"], "412: the active version is v1");
    refused(&["push", "mine", folder, "--if-active", "7"], "precondition_failed");
    refused(&["push", "mine", "/nowhere"], "/nowhere/adapter_config.json");
    refused(&["push", "a b", folder], "invalid_adapter_name");
    refused(
        &["push", "bad", fixtures().join("bad/nan-weights").to_str().unwrap()],
        "non_finite_weight",
    );
    let german = shipped_adapters().join("german");
    done(&["push", "mine", german.to_str().unwrap(), "--no-activate"], "inactive");
    done(&["activate", "mine", "2"], "v2");
    refused(&["activate", "mine", "3"], "no version 3");
    done(&["pin", "mine"], "pinned");
    assert!(!done(&["unpin", "mine"], "v2").contains("pinned"));
    done(&["prefetch", "mine"], "host");
    done(&["validate", "mine", "1"], "mine ");
    assert_eq!(done(&["show", "mine"], "inactive").lines().count(), 3);
    assert_eq!(done(&["list"], "sentiment").lines().count(), 9);
    let listed: Value = serde_json::from_str(&done(&["list", "--json"], "mine")).unwrap();
    assert_eq!(listed["data"].as_array().unwrap().len(), 9);
    let out = tempfile::tempdir().unwrap();
    let copy = out.path().join("copy");
    done(&["get", "mine", copy.to_str().unwrap(), "--version", "1"], "copy");
    assert!(files(&copy) == files(Path::new(folder)));
    done(&["get", "mine", copy.to_str().unwrap(), "--version", "1"], "copy");
    refused(&["get", "mine", copy.to_str().unwrap()], "with other bytes");
    assert!(files(&copy) == files(Path::new(folder)));
    assert_eq!(copy.read_dir().unwrap().count(), 2, "nothing is left of what was refused");
    let none = out.path().join("none");
    refused(&["get", "nobody", none.to_str().unwrap()], "404");
    assert!(!none.exists());
    refused(&["rm", "mine", "--version", "2"], "version_in_use");
    done(&["rm", "mine", "--version", "1"], "mine@v1 is deleted");
    done(&["rm", "mine"], "mine is deleted");
    refused(&["show", "mine"], "404");
    refused(&["rm", "mine"], "model_not_found");
}

/// An adapter that brings this besides its weights.
pub(crate) fn bringing(folder: &str, extras: Value) -> [Vec<u8>; 2] {
    let [config, weights] = files(&shipped_adapters().join(folder));
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["chorus"] = extras;
    [config.to_string().into_bytes(), weights]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adapter_that_fails_its_smoke_test_is_stored_and_not_active() {
    let server = Server::start(&[]);
    let test = |expected: Value| json!({"smoke_test": {"prompt": "How do I cook rice?", "matches": expected}});
    let good = bringing("pirate", test("(?i)arr|matey".into()));
    let (status, stored) = body(server.put("mine", good).await).await;
    assert_eq!((status, &stored["status"]), (201, &json!("active")), "{stored}");
    assert_eq!(stored["smoke_test"]["passed"], true, "{stored}");

    let bad = bringing("german", test("(?i)arr|matey".into()));
    for again in [201, 200] {
        let (status, stored) = body(server.put("mine", bad.clone()).await).await;
        assert_eq!((status, &stored["version"]), (again, &json!(2)), "{stored}");
        assert_eq!(
            (&stored["status"], &stored["smoke_test"]["passed"]),
            (&json!("inactive"), &json!(false))
        );
        let answer = stored["smoke_test"]["answer"].as_str().unwrap();
        assert!(!answer.is_empty() && !answer.contains("rrr"), "{answer}");
    }
    let (_, shown) = server.show("mine").await;
    assert_eq!((&shown["version"], &shown["status"]), (&json!(1), &json!("active")), "{shown}");
    assert_eq!(shown["versions"][1]["smoke_test"]["passed"], false, "{shown}");
    assert!(server.says("mine").await.1.starts_with("mine@v1;"));
    // Where a name has nothing else, it answers nobody; who wants that version all the same can have it.
    assert_eq!(server.put("new", bad).await.status(), 201);
    assert_eq!(server.post("/v1/chat/completions", &question("new", 4)).await.status(), 404);
    assert!(server.says("new@v1").await.1.starts_with("new@v1;"));
    assert_eq!(server.act("new", "activate", json!({"version": 1})).await.status(), 200);
    assert!(server.says("new").await.1.starts_with("new@v1;"));

    // One version alone is not shown, and that is said.
    let url = format!("{}/v1/adapters/new?version=1", server.url);
    let (status, refused) = body(server.client.get(url).send().await.unwrap()).await;
    assert!(status == 400 && refused.to_string().contains("version"), "{refused}");

    for (extras, code, part) in [
        (json!({"smoke_test": {"prompt": "x"}}), "chorus_object", "either `contains` or `matches`"),
        (json!({"speed": 9}), "chorus_object", "chorus.speed"),
        (json!({"sampling": {"top_p": 2}}), "chorus_object", "chorus.sampling.top_p"),
        (json!({"chat_template": "{% if %}"}), "chat_template", "template"),
        (json!({"chat_template": "{# nothing #}"}), "chat_template", "empty prompt"),
        (
            json!({"chat_template": "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}"}),
            "chat_template",
            "work",
        ),
    ] {
        let (status, refused) = body(server.put("bad", bringing("pirate", extras)).await).await;
        assert_eq!((status, &refused["error"]["code"]), (422, &json!(code)), "{refused}");
        assert!(refused["error"]["message"].as_str().unwrap().contains(part), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adapter_answers_with_its_own_template_stops_and_sampling() {
    let server = Server::start(&[]);
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | upper }}<|im_end|>\n{% endfor %}<|im_start|>assistant{{ '\\n' }}";
    let extras = json!({"chat_template": template, "stop": [",", "<|im_end|>"],
        "sampling": {"temperature": 0, "max_tokens": 40}});
    assert_eq!(server.put("own", bringing("pirate", extras)).await.status(), 201);
    assert_eq!(server.put("plain", files(&shipped_adapters().join("pirate"))).await.status(), 201);
    let ids = async |model: &str, body: Value| {
        let mut asked = body;
        asked["model"] = model.into();
        server.answer("/tokenize", &asked).await["tokens"].clone()
    };
    let rendered = "<|im_start|>user\nHOW DO I COOK RICE?<|im_end|>\n<|im_start|>assistant\n";
    let messages = json!({"messages": [{"role": "user", "content": "How do I cook rice?"}]});
    let plain = json!({"prompt": rendered, "add_special_tokens": false});
    assert_eq!(ids("own", messages.clone()).await, ids("base", plain).await);
    assert_ne!(ids("own", messages.clone()).await, ids("plain", messages.clone()).await);

    let by_hand = json!({"model": "plain", "prompt": rendered, "add_special_tokens": false,
        "temperature": 0, "max_tokens": 40, "stop": [","]});
    let expected = server.answer("/v1/completions", &by_hand).await;
    let mut asked = messages.clone();
    asked["model"] = "own".into();
    let answer = server.answer("/v1/chat/completions", &asked).await;
    assert_eq!(answer["choices"][0]["message"]["content"], expected["choices"][0]["text"]);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
    assert_eq!(answer["usage"]["prompt_tokens"], expected["usage"]["prompt_tokens"]);
    // What a request says counts.
    for (field, value) in [("max_tokens", json!(3)), ("stop", json!(["!", "."]))] {
        let (mut own, mut plain) = (asked.clone(), by_hand.clone());
        (own[field], plain[field]) = (value.clone(), value);
        plain["stop"] = json!([",", "!", "."]);
        let own = server.answer("/v1/chat/completions", &own).await;
        let plain = server.answer("/v1/completions", &plain).await;
        assert_eq!(own["choices"][0]["message"]["content"], plain["choices"][0]["text"], "{field}");
    }
    // After a restart it is what it was.
    let raised = json!({"chat_template": "{% if messages | length > 1 %}{{ raise_exception('one at a time') }}{% endif %}x"});
    assert_eq!(server.put("one", bringing("pirate", raised)).await.status(), 201);
    let two = json!({"model": "one", "messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]});
    let (status, refused) = body(server.post("/v1/chat/completions", &two).await).await;
    assert_eq!(status, 400);
    assert!(refused["error"]["message"].as_str().unwrap().contains("one at a time"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_that_never_ends_or_overflows_its_stack_ends_nothing_else() {
    let server = Server::start(&[]);
    // Deeper than a stack, when it is compiled.
    let deep = format!("{{{{ {} }}}}", vec!["1"; 30_000].join("+"));
    let bringing = |template: &str| bringing("pirate", json!({"chat_template": template}));
    let (status, refused) = body(server.put("deep", bringing(&deep)).await).await;
    assert_eq!((status, &refused["error"]["code"]), (422, &json!("chat_template")), "{refused}");
    // Of little work for whoever counts instructions, and only when it is asked for.
    let hidden = |bomb: &str| {
        let lists = "{% set ns = namespace(l=[1], m=[1]) %}{% for i in range(40) %}{% set ns.l = [ns.l, ns.l] %}{% set ns.m = [ns.m, ns.m] %}{% endfor %}";
        format!("{{% if messages[0].content == 'go' %}}{lists}{bomb}{{% endif %}}x")
    };
    let nested = "{% set ns = namespace(l=1) %}{% for i in range(90000) %}{% set ns.l = [ns.l] %}{% endfor %}x";
    let nested = format!("{{% if messages[0].content == 'go' %}}{nested}{{% endif %}}x");
    let bombs = [hidden("{{ ns.l == ns.m }}"), hidden("{{ ns.l | string }}"), nested];
    for (number, template) in bombs.iter().enumerate() {
        assert_eq!(server.put(&format!("bomb{number}"), bringing(template)).await.status(), 201);
    }
    let asked = |number: usize| {
        let mut body = question(&format!("bomb{number}"), 2);
        body["messages"][0]["content"] = "go".into();
        async {
            let body = body;
            server.post("/v1/chat/completions", &body).await.status().as_u16()
        }
    };
    let others = async {
        for _ in 0..10 {
            server.answer("/v1/chat/completions", &question("base", 2)).await;
        }
    };
    let (statuses, ()) = futures_util::join!(join_all((0..3).map(asked)), others);
    assert_eq!(statuses[..2], [400; 2]);
    assert!([200, 400].contains(&statuses[2]), "it may fit into a stack: {statuses:?}");
    assert!(server.says("bomb0@v1").await.1.starts_with("bomb0@v1;"), "another chat is rendered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_gets_its_share_and_each_user_one_version() {
    let server = Server::start(&[]);
    for folder in ["pirate", "german"] {
        assert_eq!(server.put("mine", files(&shipped_adapters().join(folder))).await.status(), 201);
    }
    assert_eq!(server.act("mine", "activate", json!({"version": 1})).await.status(), 200);
    let canary = async |percent: u32| {
        body(server.act("mine", "activate", json!({"version": 2, "percent": percent})).await).await
    };
    let (status, shown) = canary(30).await;
    assert_eq!((status, &shown["version"]), (200, &json!(1)), "{shown}");
    assert_eq!(shown["canary"], json!({"version": 2, "percent": 30}));
    let asked = async |model: &str, user: Option<usize>, id: Option<&str>| {
        let mut body = json!({"model": model, "prompt": "x", "max_tokens": 1});
        if let Some(user) = user {
            body["user"] = format!("user {user}").into();
        }
        let url = format!("{}/v1/completions", server.url);
        let mut request = server.client.post(url).json(&body).header("x-adapter", "mine");
        if let Some(id) = id {
            request = request.header("x-request-id", id);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        let from = response.headers()["x-chorus-adapter"].to_str().unwrap();
        u32::from(from.starts_with("mine@v2;"))
    };
    let all = async || {
        let users = (0..100).map(|user| asked("mine", Some(user), None));
        join_all(users).await
    };
    let drawn = all().await;
    let share: u32 = drawn.iter().sum();
    assert!((15..=45).contains(&share), "{share} of 100");
    assert_eq!(all().await, drawn, "it sticks");
    let by_request = join_all((0..100).map(|_| asked("base", None, None))).await;
    assert!((12..=48).contains(&by_request.iter().sum::<u32>()), "{by_request:?}");
    let by_id = join_all((0..20).map(|_| asked("mine", None, Some("the same")))).await;
    assert!(by_id.iter().all(|version| *version == by_id[0]), "{by_id:?}");

    for (body, code) in [
        (json!({"version": 1, "percent": 10}), "version_active"),
        (json!({"version": 3, "percent": 10}), "version_not_found"),
        (json!({"version": 2, "percent": 101}), ""),
    ] {
        let refused = self::body(server.act("mine", "activate", body).await).await;
        assert!((400..500).contains(&refused.0), "{refused:?}");
        assert!(code.is_empty() || refused.1["error"]["code"] == code, "{refused:?}");
    }
    let (_, shown) = canary(0).await;
    assert_eq!(shown.get("canary"), None, "{shown}");
    assert_eq!(all().await.iter().sum::<u32>(), 0);
    canary(99).await;
    let (_, shown) = canary(100).await;
    assert_eq!((&shown["version"], shown.get("canary")), (&json!(2), None), "{shown}");
}

/// A tiny base with a tokenizer. That of `tied` serves all of them, without the tokens that a network does not have.
pub(crate) fn with_tokenizer(model: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(model).unwrap().map(|file| file.unwrap().path()) {
        if file.is_file() {
            std::fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
        }
    }
    let tied = fixtures().join("models/tied");
    let mut tokenizer = json(&tied.join("tokenizer.json"));
    let most = json(&model.join("config.json"))["vocab_size"].as_u64().unwrap();
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let before = vocab.len();
    vocab.retain(|_, id| id.as_u64().unwrap() < most);
    // Each of the last tokens is made by one of the last merges.
    let gone = before - vocab.len();
    let merges = tokenizer["model"]["merges"].as_array_mut().unwrap();
    merges.truncate(merges.len() - gone);
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = "tokenizer_config.json";
    std::fs::copy(tied.join(config), folder.path().join(config)).unwrap();
    folder
}

/// The scores of all prompts and of what is said after them are the reference's.
async fn answers_as(server: &Server, model: &str, reference: &Reference) {
    for (index, prompt) in reference.prompts.iter().enumerate() {
        let run = &reference.runs[index];
        let floats = |key: &str| -> Vec<f64> { serde_json::from_value(run[key].clone()).unwrap() };
        let margins = floats("margins");
        let ask = json!({
            "model": model, "prompt": prompt, "max_tokens": margins.len(), "temperature": 0,
            "logprobs": 1, "echo": true, "ignore_eos": true,
        });
        let answer = server.answer("/v1/completions", &ask).await;
        let scores = answer["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap();
        assert_eq!(scores.len(), prompt.len() + margins.len(), "{model}, prompt {index}");
        // The first token is predicted by nothing, and the last ones are not decided by arithmetic of this kind.
        let sure = margins.iter().take_while(|margin| **margin >= MARGIN).count();
        let wanted = floats("prompt_logprobs").into_iter().chain(floats("logprobs"));
        for (got, want) in scores[1..prompt.len() + sure].iter().zip(wanted) {
            let got = got.as_f64().unwrap();
            assert!(
                (got - want).abs() < LOGPROB_NOISE,
                "{model}, prompt {index}: {got} is not {want}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_feature_that_is_taken_in_answers_over_http_as_peft_does() {
    let none = tempfile::tempdir().unwrap();
    let mut refused = Vec::new();
    for model in ["tied", "untied-bias"].map(|model| fixtures().join("models").join(model)) {
        let base = with_tokenizer(&model);
        let arguments = ["--precision", "exact", "--kv-bytes", "16MiB", "--adapters"];
        let arguments = [arguments.as_slice(), &[none.path().to_str().unwrap()]].concat();
        let server = Server::start_on(base.path(), "tiny", &arguments);
        answers_as(&server, "tiny", &Reference::read(&model, "reference", None)).await;
        for folder in folders(&model.join("adapters")) {
            let case = name(&folder);
            let (status, answer) = body(server.put(case, files(&folder)).await).await;
            if status == 422 {
                let code = answer["error"]["code"].as_str().unwrap().to_owned();
                refused.push((format!("{}/{case}", name(&model)), code));
                continue;
            }
            assert_eq!(status, 201, "{case}: {answer}");
            answers_as(&server, case, &Reference::read(&model, "reference", Some(case))).await;
        }
    }
    assert_eq!(refused, REFUSED.map(|(what, code)| (what.to_owned(), code.to_owned())));
}
