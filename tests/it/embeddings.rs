//! `/v1/embeddings` against transformers + PEFT, and against itself in any company.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    tenants::operator,
    world::{Server, fixtures, json},
};

const EMBEDDINGS: &str = "/v1/embeddings";
const POOLINGS: [&str; 2] = ["mean", "last"];

/// What transformers and PEFT have of the inputs.
struct Reference {
    voices: Vec<String>,
    texts: Vec<String>,
    ids: Vec<Vec<u32>>,
    file: Vec<u8>,
}

impl Reference {
    fn read() -> Self {
        let folder = fixtures().join("smollm2");
        let file = json(&folder.join("embeddings.json"));
        let inputs = file["inputs"].as_array().unwrap();
        let text = |input: &Value| input["text"].as_str().unwrap().to_owned();
        let ids = |input: &Value| serde_json::from_value(input["ids"].clone()).unwrap();
        Self {
            voices: serde_json::from_value(file["voices"].clone()).unwrap(),
            texts: inputs.iter().map(text).collect(),
            ids: inputs.iter().map(ids).collect(),
            file: std::fs::read(folder.join("embeddings.safetensors")).unwrap(),
        }
    }

    fn tokens(&self) -> usize {
        self.ids.iter().map(Vec::len).sum()
    }

    /// One vector for each input.
    fn vectors(&self, voice: &str, pooling: &str) -> Vec<Vec<f32>> {
        let tensors = SafeTensors::deserialize(&self.file).unwrap();
        let view = tensors.tensor(&format!("{voice}.{pooling}")).unwrap();
        view.data().chunks(view.shape()[1] * 4).map(floats).collect()
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// The vectors of an answer in either format, in their order.
fn vectors(answer: &Value) -> Vec<Vec<f32>> {
    let data = answer["data"].as_array().unwrap();
    let read = |(index, one): (usize, &Value)| {
        assert_eq!((&one["object"], &one["index"]), (&json!("embedding"), &json!(index)));
        match &one["embedding"] {
            Value::String(base64) => floats(&STANDARD.decode(base64).unwrap()),
            numbers => serde_json::from_value(numbers.clone()).unwrap(),
        }
    };
    data.iter().enumerate().map(read).collect()
}

fn bits(vectors: &[Vec<f32>]) -> Vec<Vec<u32>> {
    vectors.iter().map(|vector| vector.iter().map(|number| number.to_bits()).collect()).collect()
}

/// How far two vectors of length 1 are from each other.
fn distance(one: &[f32], other: &[f32]) -> f64 {
    assert_eq!(one.len(), other.len());
    let squares = one.iter().zip(other).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    squares.sum::<f64>().sqrt()
}

/// All vectors of the reference, which must be so near.
async fn check(server: &Server, near: f64) {
    let reference = Reference::read();
    for (voice, pooling) in
        reference.voices.iter().flat_map(|voice| POOLINGS.map(|pooling| (voice, pooling)))
    {
        let ask = |input: Value, format: &str| {
            let body = json!({
                "model": voice, "input": input, "pooling": pooling, "encoding_format": format,
                "user": "somebody", "dimensions": 576,
            });
            async move { server.answer(EMBEDDINGS, &body).await }
        };
        let answer = ask(json!(reference.texts), "float").await;
        assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!(voice)));
        let tokens = reference.tokens();
        assert_eq!(answer["usage"], json!({"prompt_tokens": tokens, "total_tokens": tokens}));
        let got = vectors(&answer);
        let want = reference.vectors(voice, pooling);
        assert_eq!(got.len(), want.len());
        for (index, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!((distance(got, &vec![0.0; got.len()]) - 1.0).abs() < 1e-6, "length 1");
            let distance = distance(got, want);
            assert!(distance < near, "{voice} {pooling} {index} is off by {distance}");
        }
        let ids = ask(json!(reference.ids), "base64").await;
        assert_eq!(bits(&vectors(&ids)), bits(&got), "{voice}: ids and base64 are the same");
        let one = ask(json!(reference.texts[2]), "base64").await;
        assert_eq!(bits(&vectors(&one)), bits(&got[2..3]), "{voice}: a text by itself");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exact_vectors_are_the_references() {
    check(&Server::start(&["--precision", "exact"]), 5e-5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rounded_inputs_hardly_turn_a_vector() {
    check(&Server::start(&[]), 5e-3).await;
}

/// Chats through these models, until they are dropped.
fn company(server: &Arc<Server>, models: &[&str]) -> JoinSet<()> {
    let mut chats = JoinSet::new();
    for (at, model) in models.iter().enumerate() {
        let (server, model) = (Arc::clone(server), (*model).to_owned());
        chats.spawn(async move {
            for round in 0.. {
                let said =
                    format!("{round}: tell me more about number {at}. ").repeat(round % 5 + 1);
                let body = json!({
                    "model": model, "max_tokens": 40, "ignore_eos": true,
                    "messages": [{"role": "user", "content": said}],
                });
                server.answer("/v1/chat/completions", &body).await;
            }
        });
    }
    chats
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vector_is_the_same_alone_and_in_any_company() {
    let reference = Reference::read();
    let asked: Vec<_> = ["base", "sql", "hashtag"]
        .iter()
        .flat_map(|voice| POOLINGS.map(|pooling| (*voice, pooling)))
        .map(|(voice, pooling)| {
            json!({"model": voice, "input": reference.ids, "pooling": pooling, "encoding_format": "base64"})
        })
        .collect();
    let alone = Server::start(&[]);
    let mut want = Vec::new();
    for body in &asked {
        want.push(alone.answer(EMBEDDINGS, body).await["data"].clone());
    }
    drop(alone);
    // Steps that cut texts elsewhere, other threads, prefixes at hand or not, and so few pages that sequences lose theirs.
    let shapes: [&[&str]; 3] = [
        &["--step-tokens", "24", "--threads", "1", "--prefix-cache", "false"],
        &["--step-tokens", "17", "--threads", "3"],
        &["--max-context", "1024", "--kv-bytes", "20MiB"],
    ];
    for arguments in shapes {
        let server = Arc::new(Server::start(arguments));
        let chats = company(&server, &["base", "pirate", "sql", "medcode", "hashtag", "base"]);
        let mut asking = JoinSet::new();
        for (body, want) in asked.iter().cloned().zip(want.clone()) {
            let server = Arc::clone(&server);
            asking.spawn(async move {
                for _ in 0..2 {
                    let got = server.answer(EMBEDDINGS, &body).await;
                    assert_eq!(got["data"], want, "{} {}", body["model"], body["pooling"]);
                }
            });
        }
        while let Some(asked) = asking.join_next().await {
            asked.unwrap();
        }
        drop(chats);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_embedded_counts_as_prompts_do() {
    let server = Server::start(&[]);
    let operator = operator(&server, "acme").await;
    let (key, _) = operator.new_key("acme", "infer").await;
    let quota = json!({"requests_per_minute": 9, "tokens_per_minute": 100});
    assert_eq!(operator.post("/v1/admin/tenants/acme/quota", &quota).await.0, 200);
    let ask = |body: Value| {
        let url = format!("{}{EMBEDDINGS}", server.url);
        server.client.post(url).bearer_auth(&key).json(&body).send()
    };
    let reference = Reference::read();
    let text = json!({"model": "base", "input": [reference.texts[0], reference.texts[1]]});
    let (first, second) = (reference.ids[0].len() as u64, reference.ids[1].len() as u64);
    assert!(first + second > 100);

    let answer = ask(text.clone()).await.unwrap();
    assert_eq!(answer.status(), 200);
    let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("x-chorus-adapter"), "base");
    assert_eq!(header("x-ratelimit-limit-requests"), "9");
    assert_eq!(header("x-ratelimit-remaining-requests"), "8");
    assert_eq!(header("x-ratelimit-limit-tokens"), "100");
    // The last one went beyond.
    let over = ask(text).await.unwrap();
    assert_eq!(over.status(), 429);
    assert!(over.headers().contains_key("retry-after"));
    let error: Value = over.json().await.unwrap();
    assert_eq!(error["error"]["type"], "tokens");
    // Adapters are their tenant's.
    operator.post("/v1/admin/tenants/acme/quota", &json!({})).await;
    let foreign = ask(json!({"model": "pirate", "input": "a"})).await.unwrap();
    assert_eq!(foreign.status(), 404);

    let (_, usage) = operator.get("/v1/admin/usage?by=total&tenant=acme").await;
    let row = &usage["data"][0];
    let counts = ["requests", "prompt_tokens", "generated_tokens"].map(|count| row[count].as_u64());
    assert_eq!(counts, [Some(1), Some(first + second), Some(0)], "{usage}");
}
