//! A base whose positions are known up to a length, as it is served.

use std::path::Path;

use serde_json::{Value, json};

use crate::world::{Server, fixtures, json};

/// The `tied` base, with this rope scaling.
fn base(folder: &Path, scaling: &Value) {
    let tied = fixtures().join("models/tied");
    for file in std::fs::read_dir(&tied).unwrap().map(Result::unwrap) {
        if file.path().is_file() {
            std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
        }
    }
    let mut config = json(&tied.join("config.json"));
    config["rope_scaling"] = scaling.clone();
    config["max_position_embeddings"] = 128.into();
    std::fs::remove_file(folder.join("config.json")).unwrap();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_base_with_dynamic_scaling_is_the_plain_one_up_to_its_context() {
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let [plain, dynamic, none] = folders.each_ref().map(tempfile::TempDir::path);
    base(plain, &Value::Null);
    base(dynamic, &json!({"rope_type": "dynamic", "factor": 4.0}));
    let start = |folder| Server::start_on(folder, "tied", &["--adapters", none.to_str().unwrap()]);
    let (plain, dynamic) = (start(plain), start(dynamic));
    assert!(!plain.plan.contains("dynamic"), "{}", plain.plan);
    let said = "context   128 tokens\n            beyond 128 tokens the frequencies of its rope scaling `dynamic`";
    assert!(dynamic.plan.contains(said), "{}", dynamic.plan);

    let ids: Vec<u32> = (0..120).map(|at| at * 7 % 300 + 10).collect();
    let body = |max_tokens: usize| {
        json!({"model": "tied", "prompt": ids, "max_tokens": max_tokens, "temperature": 0,
            "ignore_eos": true, "logprobs": 3})
    };
    let answers = [
        plain.answer("/v1/completions", &body(8)).await,
        dynamic.answer("/v1/completions", &body(8)).await,
    ];
    assert_eq!(answers[0]["choices"], answers[1]["choices"]);
    assert_eq!(answers[0]["usage"]["completion_tokens"], 8);

    let refused = dynamic.post("/v1/completions", &body(9)).await;
    assert_eq!(refused.status(), 400);
    let error: Value = refused.json().await.unwrap();
    assert_eq!(error["error"]["code"], "context_length_exceeded");
    let message = error["error"]["message"].as_str().unwrap();
    let sentence = "This model's maximum context length is 128 tokens. However, you requested 129 tokens \
                    (120 in the prompt, 9 in the completion).";
    assert!(message.starts_with(sentence), "{message}");
    let tokens = dynamic.answer("/tokenize", &json!({"prompt": "a"})).await;
    assert_eq!(tokens["max_model_len"], 128);
}
