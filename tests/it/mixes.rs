//! Several adapters that answer together.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::world::Server;

const CHAT: &str = "/v1/chat/completions";

fn body(prompt: &str) -> Value {
    json!({
        "model": "base", "max_tokens": 24, "temperature": 0, "logprobs": true, "top_logprobs": 2,
        "messages": [{"role": "user", "content": prompt}],
    })
}

/// The answer, and who gave it.
async fn ask(server: &Server, header: &str, body: &Value) -> (Value, String) {
    let request = server.client.post(format!("{}{CHAT}", server.url)).json(body);
    let request = if header.is_empty() { request } else { request.header("x-adapter", header) };
    let response = request.send().await.unwrap();
    let voice = response.headers()["x-chorus-adapter"].to_str().unwrap().to_owned();
    (response.json().await.unwrap(), voice)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mix_is_its_own_voice_alone_and_in_company() {
    let server = Server::start(&[]);
    let prompt = "Write to Ann that the meeting about the quarterly report with all the tables is moved to Friday.";
    let asked = body(prompt);
    let (pirate, _) = ask(&server, "pirate", &asked).await;
    let (formal, _) = ask(&server, "formal", &asked).await;
    let (base, _) = ask(&server, "base", &asked).await;
    let (mixed, voice) = ask(&server, "pirate:0.5, formal@v1:0.5", &asked).await;
    assert!(
        voice.starts_with("pirate@v1;sha256=") && voice.contains(";weight=0.5, formal@v1;sha256="),
        "{voice}"
    );
    for other in [&pirate, &formal, &base] {
        assert_ne!(mixed["choices"], other["choices"]);
        assert_ne!(mixed["system_fingerprint"], other["system_fingerprint"]);
    }
    assert_eq!(mixed["usage"]["prompt_tokens_details"]["cached_tokens"], 0, "prefixes are its own");

    // By the body it is the same, bit for bit, and the same while others are answered.
    let mut by_body = asked.clone();
    by_body["adapters"] =
        json!([{"name": "pirate", "scale": 0.5}, {"name": "formal", "scale": 0.5}]);
    let others = ["sql", "pirate", "base", "hashtag", "sql:0.3,formal:-1"];
    let company = others.map(|other| ask(&server, other, &asked));
    let ((again, _), beside) =
        tokio::join!(ask(&server, "", &by_body), futures_util::future::join_all(company));
    assert_eq!(again["choices"], mixed["choices"]);
    assert!(again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64() > Some(0));
    assert_eq!(beside[1].0["choices"], pirate["choices"]);

    // All of one, and nothing of one more, is that one.
    let (whole, voice) = ask(&server, "pirate:1", &asked).await;
    assert_eq!((&whole["choices"], voice.contains("weight")), (&pirate["choices"], false));
    let (nothing, _) = ask(&server, "pirate:0,sql:0", &asked).await;
    let texts = [&nothing, &base].map(|answer| answer["choices"][0]["message"]["content"].clone());
    assert_eq!(texts[0], texts[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_mixed_is_refused_and_never_left_out() {
    let server = Server::start(&[]);
    for (header, adapters, status, code) in [
        ("pirate:1,nobody:1", Value::Null, 404, json!("model_not_found")),
        ("pirate:0.5,medcode:0.5", Value::Null, 400, json!("adapter_not_mixable")),
        ("pirate:0.5,hashtag:0.5", Value::Null, 400, json!("adapter_not_mixable")),
        ("pirate:0.5,pirate:0.5", Value::Null, 400, Value::Null),
        ("pirate:0.5,formal", Value::Null, 400, Value::Null),
        ("sql", json!([{"name": "pirate", "scale": 1}]), 400, json!("adapter_conflict")),
        ("", json!([{"name": "nobody"}]), 404, json!("model_not_found")),
        ("", json!([]), 400, Value::Null),
        ("", json!([{"name": "pirate", "scale": "much"}]), 400, Value::Null),
    ] {
        let mut asked = body("x");
        asked["adapters"] = adapters;
        let request = server.client.post(format!("{}{CHAT}", server.url)).json(&asked);
        let request = if header.is_empty() { request } else { request.header("x-adapter", header) };
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::from_u16(status).unwrap(), "{header} {asked}");
        let answer: Value = response.json().await.unwrap();
        assert_eq!(answer["error"]["code"], code, "{answer}");
    }
}
