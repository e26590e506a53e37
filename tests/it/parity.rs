//! The default base and its eight adapters against transformers + PEFT, through the server, all mixed together.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::world::{Server, fixtures, json};

/// How near an answer must be to the reference's, which was computed in f32 from the same dequantized weights.
#[derive(Clone, Copy)]
struct Nearness {
    arguments: &'static [&'static str],
    /// Lead of a token's logit over the next one, above which no other may be chosen.
    margin: f64,
    /// Of a token's log-probability.
    logprob: f64,
    /// Of a text's perplexity, as a ratio.
    perplexity: f64,
    /// Of the mean score of an answer's tokens.
    answer: f64,
}

/// The same arithmetic by other sums.
const EXACT: Nearness = Nearness {
    arguments: &["--precision", "exact"],
    margin: 0.01,
    logprob: 2e-3,
    perplexity: 1e-3,
    answer: 1e-3,
};
/// The default: inputs of products rounded to 16 bits.
const INT16: Nearness =
    Nearness { arguments: &[], margin: 0.05, logprob: 0.02, perplexity: 4e-3, answer: 2e-3 };

/// Inputs of products rounded to 8 bits, which is asked for: what llama.cpp's rounding moves.
const INT8: Nearness = Nearness {
    arguments: &["--precision", "int8"],
    margin: 0.5,
    logprob: 0.4,
    perplexity: 0.06,
    answer: 0.01,
};

/// Matrices of adapters rounded to 8 bits, all else as exactly as there is.
const INT8_ADAPTERS: Nearness = Nearness {
    arguments: &["--precision", "exact", "--adapter-dtype", "int8"],
    margin: 0.02,
    logprob: 0.02,
    perplexity: 3e-3,
    answer: 3e-3,
};

/// Keys and values rounded to 8 bits, which is asked for, all else as exactly as there is.
const INT8_KV: Nearness = Nearness {
    arguments: &["--precision", "exact", "--kv-dtype", "int8"],
    margin: 0.5,
    logprob: 0.4,
    perplexity: 0.06,
    answer: 0.05,
};

const TOKENS: usize = 48;

const NAMES: [&str; 9] = [
    "base",
    "formal",
    "german",
    "hashtag",
    "medcode",
    "pirate",
    "sentiment",
    "sql",
    "support-json",
];
/// The prompts of 606 and 2,256 tokens.
const LONG: [(&str, &str); 3] =
    [("base", "base-long"), ("sql", "sql-long"), ("support-json", "support-json-long")];

fn reference(file: &str) -> Value {
    json(&fixtures().join(format!("smollm2/reference/{file}.json")))
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// The first token at which `text` leaves the reference's, if it does.
fn difference(prompt: &Value, text: &str) -> Option<usize> {
    let want = prompt["text"].as_str().unwrap();
    let ids = prompt["greedy_ids"].as_array().unwrap().len();
    let length = prompt["eos_at"].as_u64().map_or(ids, |at| usize::try_from(at).unwrap());
    let common = want.chars().zip(text.chars()).take_while(|(want, got)| want == got).count();
    let ends = prompt["char_end"].as_array().unwrap().iter().map(|end| end.as_u64().unwrap());
    let beyond = |end: u64| usize::try_from(end).unwrap() > common;
    (text != want).then(|| ends.take(length).position(beyond).unwrap_or(length))
}

async fn check(server: &Server, near: Nearness, name: &str, prompt: &Value) {
    let what = format!("{name} {}", prompt["id"]);
    let margins = floats(&prompt["margin"]);
    let chat = json!({
        "model": name, "messages": prompt["messages"], "max_tokens": TOKENS, "temperature": 0,
    });
    let answer = server.answer("/v1/chat/completions", &chat).await;
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let difference = difference(prompt, &text);
    if let Some(at) = difference {
        assert!(
            margins.get(at).is_some_and(|margin| *margin <= near.margin),
            "{what}: {text:?} leaves {} at token {at}",
            prompt["text"]
        );
    }
    let tokens = prompt["prompt_ids"].as_array().unwrap().len();
    assert_eq!(answer["usage"]["prompt_tokens"], tokens, "{what}");

    let completion = json!({
        "model": name, "prompt": prompt["rendered"], "max_tokens": TOKENS, "temperature": 0, "logprobs": 1,
    });
    let answer = server.answer("/v1/completions", &completion).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"].as_str(), Some(text.as_str()), "{what}: chat and completion differ");
    assert_eq!(answer["usage"]["prompt_tokens"], tokens, "{what}");
    if difference.is_none() && !prompt["eos_at"].is_null() {
        assert_eq!(choice["finish_reason"], "stop", "{what}");
    }
    let got = floats(&choice["logprobs"]["token_logprobs"]);
    let same = difference.unwrap_or(margins.len());
    for (got, want) in got.iter().zip(floats(&prompt["logprob"])).take(same) {
        assert!((got - want).abs() < near.logprob, "{what}: log-probability {got} is not {want}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_exact_answer_is_the_references_in_any_company() {
    every_answer_is_near(EXACT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rounded_inputs_change_no_token_that_the_reference_is_sure_of() {
    every_answer_is_near(INT16).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_values_in_eight_bits_change_no_token_that_leads_by_half_a_logit() {
    every_answer_is_near(INT8_KV).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_bits_change_no_token_that_leads_by_half_a_logit() {
    every_answer_is_near(INT8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adapters_in_eight_bits_change_no_token_that_the_reference_is_sure_of() {
    every_answer_is_near(INT8_ADAPTERS).await;
}

async fn every_answer_is_near(near: Nearness) {
    let server = Arc::new(Server::start(near.arguments));
    let mut prompts = Vec::new();
    for (name, file) in NAMES.map(|name| (name, name)).into_iter().chain(LONG) {
        let prompt = |prompt: &Value| (name, prompt.clone());
        prompts.extend(reference(file)["prompts"].as_array().unwrap().iter().map(prompt));
    }
    assert_eq!(prompts.len(), 78);
    // Neighbours in the batch are of different adapters.
    prompts.sort_by_key(|(name, prompt)| {
        (prompt["id"].to_string().len(), prompt["id"].to_string(), *name)
    });
    let tokens = Arc::new(Semaphore::new(16));
    let mut checks = JoinSet::new();
    for (name, prompt) in prompts {
        let (server, tokens) = (Arc::clone(&server), Arc::clone(&tokens));
        checks.spawn(async move {
            let _permit = tokens.acquire().await.unwrap();
            check(&server, near, name, &prompt).await;
        });
    }
    while let Some(checked) = checks.join_next().await {
        checked.unwrap();
    }
}

/// Sum of the log-probabilities of `text`'s tokens from the second on, and of those from `answer` on.
async fn score(server: &Server, name: &str, text: &Value) -> (f64, f64, usize) {
    let body = json!({
        "model": name, "prompt": text["text"], "max_tokens": 0, "echo": true, "logprobs": 1,
    });
    let answer = server.answer("/v1/completions", &body).await;
    let scores = answer["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap().clone();
    let ids = text["ids"].as_array().unwrap().len();
    assert_eq!(scores.len(), ids, "{name}: tokens of {}", text["text"]);
    assert!(scores[0].is_null());
    let scores: Vec<f64> = scores[1..].iter().map(|score| score.as_f64().unwrap()).collect();
    let from = text["answer_start"].as_u64().map_or(ids, |at| usize::try_from(at).unwrap());
    (scores.iter().sum(), scores[from - 1..].iter().sum(), ids - from)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exact_perplexities_are_the_references() {
    perplexities_are_near(EXACT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rounded_inputs_cost_next_to_no_perplexity() {
    perplexities_are_near(INT16).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_bits_cost_little_perplexity() {
    perplexities_are_near(INT8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_values_in_eight_bits_cost_little_perplexity() {
    perplexities_are_near(INT8_KV).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adapters_in_eight_bits_cost_next_to_no_perplexity() {
    perplexities_are_near(INT8_ADAPTERS).await;
}

async fn perplexities_are_near(near: Nearness) {
    let server = Arc::new(Server::start(near.arguments));
    let mut sets = JoinSet::new();
    for name in NAMES {
        let nll = reference(name)["nll"].clone();
        for kind in ["task", "general"] {
            let (server, set) = (Arc::clone(&server), nll[kind].clone());
            if set.is_null() {
                continue;
            }
            sets.spawn(async move {
                let (mut all, mut answer, mut tokens, mut answers) = (0.0, 0.0, 0, 0);
                for text in set["texts"].as_array().unwrap() {
                    let scored = score(&server, name, text).await;
                    all -= scored.0;
                    answer -= scored.1;
                    answers += scored.2;
                    tokens += text["ids"].as_array().unwrap().len() - 1;
                }
                let ratio = (all / tokens as f64).exp() / set["ppl_all"].as_f64().unwrap();
                assert!(
                    (ratio - 1.0).abs() < near.perplexity,
                    "{name}, {kind}: perplexity is off by {ratio}"
                );
                if let Some(want) = set["mean_nll_answer"].as_f64() {
                    let got = answer / answers as f64;
                    assert!(
                        (got - want).abs() < near.answer,
                        "{name}: answers score {got}, not {want}"
                    );
                }
            });
        }
    }
    while let Some(checked) = sets.join_next().await {
        checked.unwrap();
    }
}
