//! Every feature of PEFT that is taken in.

use super::*;
use crate::{
    reference::{LOGPROB_NOISE, MARGIN, REFUSED, Reference},
    world::{folders, name},
};

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
