//! Tiny networks and every feature of an adapter against transformers + PEFT.

use std::{num::NonZeroUsize, path::Path, sync::Arc};

use chorus::{
    adapter::{Folder, Refused, Rules, Unusable},
    lora::{Adapter, BuildError, Limits, Matrices},
    model::Llama,
};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::world::{Solo, adapter, fixtures, folders, greedy, json, load, log_softmax, name};

/// Of a reference computed in fp32 by other sums.
const LOGIT_NOISE: f32 = 2e-4;
/// The same of log-probabilities.
pub(crate) const LOGPROB_NOISE: f64 = 5e-4;
/// Below this margin a token is not decided by arithmetic of this kind.
pub(crate) const MARGIN: f64 = 0.01;

/// The part of what an adapter changes in the logits that eight bits may lose.
const INT8_LOSS: f64 = 0.03;

/// Adapters that PEFT takes and that are refused here, each with the code of why; see `tests/fixtures/README.md`.
pub(crate) const REFUSED: [(&str, &str); 6] = [
    ("tied/embed-edited", "base_weight_differs"),
    ("tied/head-edited", "base_weight_differs"),
    ("tied/saved-base", "base_weight_differs"),
    ("tied/trainable-tokens", "unsupported_feature"),
    ("untied-bias/head-edited", "base_weight_differs"),
    ("untied-bias/save-linear", "saved_projection"),
];

pub(crate) struct Reference {
    pub(crate) prompts: Vec<Vec<u32>>,
    pub(crate) runs: Value,
    logits: Vec<Vec<f32>>,
}

impl Reference {
    pub(crate) fn read(model: &Path, stem: &str, case: Option<&str>) -> Self {
        let file = json(&model.join(format!("{stem}.json")));
        let runs = match case {
            None => &file["base"]["runs"],
            Some(case) => &file["adapters"][case]["runs"],
        };
        let bytes = std::fs::read(model.join(format!("{stem}.safetensors"))).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let key = case.map_or("base".to_owned(), |case| format!("adapter.{case}"));
        let view = tensors.tensor(&key).unwrap();
        let values: Vec<f32> =
            view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let logits = values.chunks(view.shape()[1]).map(<[f32]>::to_vec).collect();
        let prompts = serde_json::from_value(file["prompts"].clone()).unwrap();
        Self { prompts, runs: runs.clone(), logits }
    }

    fn check(&self, llama: &Llama, adapter: Option<&Arc<Adapter>>, what: &str) {
        for (index, prompt) in self.prompts.iter().enumerate() {
            let run = &self.runs[index];
            let floats =
                |key: &str| -> Vec<f64> { serde_json::from_value(run[key].clone()).unwrap() };
            let tokens: Vec<u32> = serde_json::from_value(run["greedy"].clone()).unwrap();
            let mut solo = Solo::new(llama, adapter.cloned(), prompt.len() + tokens.len());
            let rows = solo.feed(prompt);
            for (row, (token, want)) in
                rows.iter().zip(prompt[1..].iter().zip(floats("prompt_logprobs")))
            {
                let got = log_softmax(row)[*token as usize];
                assert!(
                    (got - want).abs() < LOGPROB_NOISE,
                    "{what}, prompt {index}: {got} is not {want}"
                );
            }
            Self::check_some(llama, adapter, prompt, &rows);
            let mut last = rows.into_iter().next_back().unwrap();
            for (got, want) in last.iter().zip(&self.logits[index]) {
                assert!(
                    (got - want).abs() < LOGIT_NOISE,
                    "{what}, prompt {index}: logit {got} is not {want}"
                );
            }
            for (at, margin) in floats("margins").into_iter().enumerate() {
                if margin < MARGIN {
                    break;
                }
                assert_eq!(greedy(&last), tokens[at], "{what}, prompt {index}, token {at}");
                let got = log_softmax(&last)[tokens[at] as usize];
                let want = floats("logprobs")[at];
                assert!(
                    (got - want).abs() < LOGPROB_NOISE,
                    "{what}, prompt {index}, token {at}: {got} is not {want}"
                );
                last = solo.feed(&tokens[at..=at]).remove(0);
            }
        }
    }

    /// Rows of which nobody wants logits or states change none of the others, in the same step or in one before.
    fn check_some(llama: &Llama, adapter: Option<&Arc<Adapter>>, prompt: &[u32], all: &[Vec<f32>]) {
        let bits = |rows: Vec<Vec<f32>>| -> Vec<u32> {
            rows.into_iter().flatten().map(f32::to_bits).collect()
        };
        let (before, after) = prompt.split_at(prompt.len() / 3);
        let wanted: Vec<_> = (0..after.len()).filter(|row| row % 4 != 2).collect();
        let sample: Vec<_> = wanted.iter().map(|row| u32::try_from(*row).unwrap()).collect();
        let mut solo = Solo::new(llama, adapter.cloned(), prompt.len());
        assert!(before.is_empty() || solo.feed_for(before, &[]).is_empty());
        // Some are in both.
        let pool: Vec<_> = (0..).take(after.len()).filter(|row| row % 3 == 1).collect();
        let (some, states) = solo.feed_for_both(after, &sample, &pool);
        let want = wanted.iter().map(|row| all[before.len() + row].clone()).collect();
        assert_eq!(bits(some), bits(want));
        let rows: Vec<_> = (0..).take(prompt.len()).collect();
        let (none, all) =
            Solo::new(llama, adapter.cloned(), prompt.len()).feed_for_both(prompt, &[], &rows);
        assert!(none.is_empty());
        let want = pool.iter().map(|row| all[before.len() + *row as usize].clone()).collect();
        assert_eq!(bits(states), bits(want));
    }
}

#[test]
fn every_network_computes_what_transformers_does() {
    for model in folders(&fixtures().join("models")) {
        Reference::read(&model, "reference", None).check(&load(&model), None, name(&model));
    }
}

#[test]
fn every_adapter_computes_what_peft_does() {
    let mut refused = Vec::new();
    for model in folders(&fixtures().join("models")) {
        let llama = load(&model);
        for folder in folders(&model.join("adapters")) {
            let what = format!("{}/{}", name(&model), name(&folder));
            match adapter(&folder, &llama, Matrices::Native) {
                Ok(adapter) => {
                    let reference = Reference::read(&model, "reference", Some(name(&folder)));
                    reference.check(&llama, Some(&adapter), &what);
                }
                Err(BuildError::Refused(refusal)) => refused.push((what, refusal.code())),
                Err(failed) => panic!("{what}: {failed}"),
            }
        }
    }
    assert_eq!(refused, REFUSED.map(|(what, code)| (what.to_owned(), code)));
}

/// Whatever it is made of: rsLoRA, DoRA, biases, patterns, embeddings, heads.
#[test]
fn every_adapter_in_eight_bits_changes_nearly_what_it_does_in_peft() {
    for model in folders(&fixtures().join("models")) {
        let llama = load(&model);
        let base = Reference::read(&model, "reference", None);
        for folder in folders(&model.join("adapters")) {
            let Ok(adapter) = adapter(&folder, &llama, Matrices::Int8) else { continue };
            let Reference { prompts, logits, .. } =
                Reference::read(&model, "reference", Some(name(&folder)));
            let (mut lost, mut changed) = (0.0, 0.0);
            for (index, prompt) in prompts.iter().enumerate() {
                let mut solo = Solo::new(&llama, Some(Arc::clone(&adapter)), prompt.len());
                let got = solo.feed(prompt).pop().unwrap();
                for ((got, want), base) in got.iter().zip(&logits[index]).zip(&base.logits[index]) {
                    lost += f64::from(got - want).powi(2);
                    changed += f64::from(want - base).powi(2);
                }
            }
            let loss = (lost / changed).sqrt();
            assert!(loss < INT8_LOSS, "{}/{}: {loss}", name(&model), name(&folder));
        }
    }
}

#[test]
fn an_adapter_that_cannot_be_served_is_refused_at_the_scan() {
    let model = fixtures().join("models/tied");
    let rules = Rules {
        base: &load(&model),
        limits: &Limits::default(),
        reserved: &[],
        workers: NonZeroUsize::MIN,
    };
    let folder = Folder::scan(&model.join("adapters"), &rules).unwrap();
    let code = |refused: &Refused| match &refused.why {
        Unusable::Adapter(refusal) => refusal.code(),
        other => panic!("{other}"),
    };
    let refused = folder.refused().iter().map(|one| (format!("tied/{}", one.folder), code(one)));
    let expected = REFUSED.iter().filter(|(what, _)| what.starts_with("tied/"));
    let expected = expected.map(|(what, code)| ((*what).to_owned(), *code));
    assert_eq!(refused.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
}

#[test]
fn a_gguf_computes_what_its_safetensors_do() {
    let model = fixtures().join("models/tied");
    let llama = load(&fixtures().join("gguf/tied-f32.gguf"));
    Reference::read(&model, "reference", None).check(&llama, None, "gguf");
    for case in ["plain", "all-linear", "dora", "embed-head-slim"] {
        let folder = model.join("adapters").join(case);
        let adapter = adapter(&folder, &llama, Matrices::Native).unwrap();
        Reference::read(&model, "reference", Some(case)).check(&llama, Some(&adapter), case);
    }
}

#[test]
fn a_gguf_of_eight_types_computes_what_transformers_does_on_its_values() {
    let folder = fixtures().join("gguf");
    let llama = load(&folder.join("tied-mixed.gguf"));
    Reference::read(&folder, "tied-mixed.reference", None).check(&llama, None, "mixed");
}
