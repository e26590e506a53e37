//! Vectors of texts.

use super::{
    super::double::{self, Play, app, ids},
    *,
};
use crate::engine::{Failure, Pooling, Refused};

const EMBEDDINGS: &str = "/v1/embeddings";

fn embedding(more: Value) -> Value {
    merge(json!({"model": "base", "input": "once"}), more)
}

#[tokio::test]
async fn inputs_become_vectors_in_their_order() {
    let plays = [Play::pooled([1.0, 0.0, -0.5, 0.25]), Play::pooled([0.0, 2.0, 0.0, 0.0])];
    let (app, engine) = app(plays);
    let request = embedding(json!({
        "model": "sql", "input": ["ab", "c"], "encoding_format": "float", "dimensions": 4, "user": "eve",
    }));
    let response = send(&app, post(EMBEDDINGS, &request)).await;
    let voice = response.headers()["x-chorus-adapter"].to_str().unwrap();
    assert!(voice.starts_with("sql@v1;sha256="), "{voice}");
    assert!(response.headers().contains_key("x-request-id"));
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(
        body(response).await,
        json!({
            "object": "list",
            "data": [
                {"object": "embedding", "index": 0, "embedding": [1.0, 0.0, -0.5, 0.25]},
                {"object": "embedding", "index": 1, "embedding": [0.0, 2.0, 0.0, 0.0]},
            ],
            "model": "sql",
            "usage": {"prompt_tokens": 3, "total_tokens": 3},
        })
    );
    let [first, second] = &engine.jobs()[..] else { panic!("two jobs") };
    assert_eq!((&first.prompt, &second.prompt), (&ids("ab"), &ids("c")));
    assert_eq!((first.pooling, first.max_tokens), (Some(Pooling::Mean), 0));
    assert!(first.deadline.is_some() && first.prompt_logprobs.is_none());
}

#[tokio::test]
async fn every_shape_of_input_and_both_formats_are_taken() {
    for (input, prompts) in [
        (json!("ab"), vec![ids("ab")]),
        (json!([97, 98]), vec![ids("ab")]),
        (json!([[97], [98, 99]]), vec![ids("a"), ids("bc")]),
    ] {
        let (app, engine) = app(prompts.iter().map(|_| Play::pooled([0.0, 0.0, 1.0, 0.0])));
        let more = json!({"input": input, "encoding_format": "base64", "pooling": "last", "normalize": true});
        let (status, answer) = ask(&app, EMBEDDINGS, embedding(more)).await;
        assert_eq!(status, 200, "{answer}");
        for one in answer["data"].as_array().unwrap() {
            assert_eq!(one["embedding"], "AAAAAAAAAAAAAIA/AAAAAA==");
        }
        let jobs = engine.jobs();
        assert!(jobs.iter().all(|job| job.pooling == Some(Pooling::Last)));
        assert_eq!(jobs.into_iter().map(|job| job.prompt).collect::<Vec<_>>(), prompts);
    }
}

#[tokio::test]
async fn what_cannot_be_embedded_is_refused_by_name() {
    let long = vec![97; double::CONTEXT + 1];
    for (more, status, code, param) in [
        (json!({"model": "nobody"}), 404, "model_not_found", json!("model")),
        (json!({"model": null}), 400, "-", json!("model")),
        (json!({"input": null}), 400, "-", json!("input")),
        (json!({"input": ""}), 400, "-", json!("input")),
        (json!({"input": []}), 400, "-", json!("input")),
        (json!({"input": ["a", ""]}), 400, "-", json!("input")),
        (json!({"input": [["a"]]}), 400, "-", json!("input[0][0]")),
        (json!({"input": [97, 300]}), 400, "-", json!("input")),
        (json!({"input": vec!["a"; 2049]}), 400, "-", json!("input")),
        (json!({"input": long}), 400, "context_length_exceeded", json!(null)),
        (json!({"input": ["a", "b".repeat(101)]}), 400, "context_length_exceeded", json!(null)),
        (json!({"input": " ".repeat(3 << 20)}), 400, "context_length_exceeded", json!(null)),
        (json!({"encoding_format": "bytes"}), 400, "-", json!("encoding_format")),
        (json!({"dimensions": 2}), 400, "-", json!("dimensions")),
        (json!({"dimensions": -1}), 400, "-", json!("dimensions")),
        (json!({"pooling": "max"}), 400, "-", json!("pooling")),
        (json!({"normalize": false}), 400, "-", json!("normalize")),
        (json!({"truncate_prompt_tokens": 9}), 400, "-", json!("truncate_prompt_tokens")),
        (json!({"messages": [{"role": "user"}]}), 400, "-", json!("messages")),
    ] {
        let (app, engine) = app([]);
        let request = embedding(more);
        let (got, answer) = ask(&app, EMBEDDINGS, request.clone()).await;
        assert_eq!((got, error_code(&answer)), (status, code), "{answer}");
        assert_eq!(answer["error"]["param"], param, "{answer}");
        if code == "context_length_exceeded" {
            let message = answer["error"]["message"].as_str().unwrap();
            assert!(
                message.contains("This model's maximum context length is 100 tokens"),
                "{message}"
            );
        }
        assert!(engine.jobs().is_empty());
    }
}

#[tokio::test]
async fn a_prompt_may_fill_the_context() {
    let (app, _) = app([Play::pooled([1.0; 4])]);
    let full = embedding(json!({"input": vec![97; double::CONTEXT]}));
    assert_eq!(ask(&app, EMBEDDINGS, full).await.0, 200);
}

#[tokio::test]
async fn a_header_chooses_and_may_not_contradict() {
    let (app, _) = app([Play::pooled([1.0; 4])]);
    let header = |request: Value| with_header(post(EMBEDDINGS, &request), "x-adapter", "sql");
    let response = send(&app, header(embedding(json!({"model": "law"})))).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert_eq!(error_code(&body(response).await), "adapter_conflict");
    let response = send(&app, header(embedding(json!({"model": null})))).await;
    assert!(response.headers()["x-chorus-adapter"].to_str().unwrap().starts_with("sql@v1"));
}

#[tokio::test]
async fn an_input_that_fails_fails_the_request_and_frees_the_others() {
    for (failure, status) in [(Failure::NotANumber, 500), (Failure::Deadline, 504)] {
        let (app, engine) = app([Play::hang(""), Play::fail("", failure), Play::hang("")]);
        let (got, answer) =
            ask(&app, EMBEDDINGS, embedding(json!({"input": ["a", "b", "c"]}))).await;
        assert_eq!(got, status, "{answer}");
        assert_eq!(engine.wanted(), 0);
    }
}

#[tokio::test]
async fn many_inputs_go_through_a_full_engine_one_by_one() {
    let full = || Play::Refuse(Refused::Full { waiting: 9 });
    let (app, engine) = app([
        Play::pooled([1.0; 4]),
        full(),
        Play::pooled([2.0; 4]),
        full(),
        Play::pooled([3.0; 4]),
    ]);
    let request = embedding(json!({"input": ["a", "b", "c"]}));
    let (status, answer) = ask(&app, EMBEDDINGS, request.clone()).await;
    assert_eq!(status, 200, "{answer}");
    let first = |at: usize| answer["data"][at]["embedding"][0].as_f64().unwrap();
    assert_eq!([first(0), first(1), first(2)].map(f64::to_bits), [1.0, 2.0, 3.0].map(f64::to_bits));
    assert_eq!(engine.jobs().len(), 5);
    let (app, _) = double::app([full()]);
    let response = send(&app, post(EMBEDDINGS, &request)).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["retry-after"]),
        (503, &"1".parse().unwrap())
    );
}

#[tokio::test]
async fn as_many_inputs_as_openai_takes_run_a_few_at_a_time() {
    let hanging = (0..32).map(|_| Play::hang(""));
    let (app, engine) = app(hanging.chain([Play::Refuse(Refused::Stopping)]));
    let request = post(EMBEDDINGS, &embedding(json!({"input": vec!["a"; 2048]})));
    let asking = tokio::spawn({
        let app = app.clone();
        async move { send(&app, request).await }
    });
    until(|| engine.wanted() == 32).await;
    asking.abort();
    until(|| engine.wanted() == 0).await;
    assert_eq!(engine.jobs().len(), 32, "the others were not begun");
}
