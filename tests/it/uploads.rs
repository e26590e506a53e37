//! An adapter's life as a customer sees it: uploaded, used, replaced, deleted, and still there after a crash.

use std::path::Path;

use chorus::lora::Digest;
use reqwest::{
    Response, StatusCode,
    multipart::{Form, Part},
};
use serde_json::{Value, json};

use crate::world::{Server, fixtures, json, shipped_adapters};

mod brought;
mod commands;
mod crash;
mod life;
mod mutated;
mod peft;
mod refusals;
mod stores;

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

/// An adapter that brings this besides its weights.
pub(crate) fn bringing(folder: &str, extras: Value) -> [Vec<u8>; 2] {
    let [config, weights] = files(&shipped_adapters().join(folder));
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["chorus"] = extras;
    [config.to_string().into_bytes(), weights]
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
