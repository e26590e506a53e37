//! What is accepted, and what it means.

use super::*;
use crate::lora::site::{Norm, Proj, Site};

#[test]
fn a_delta_is_its_two_tensors_and_their_scale() {
    let q = Site::Layer(1, Proj::Q);
    Files::plain().accepted(|manifest| {
        assert_eq!(manifest.deltas.len(), 4);
        let delta = &manifest.deltas[&q];
        assert_eq!((delta.a.shape(), delta.b.shape()), (&[2, 8][..], &[12, 2][..]));
        assert_eq!(delta.a.values().take(2).collect::<Vec<_>>(), [-1.0, -0.75]);
        assert_eq!((delta.rank, delta.scale.to_string()), (2, "2".to_owned()));
        assert_eq!(
            (manifest.rank, &manifest.targets[..]),
            (2, &["q_proj", "v_proj"].map(String::from)[..])
        );
    });
    Files::plain().configured("use_rslora", json!(true)).accepted(|manifest| {
        assert_eq!((manifest.deltas[&q].rank, manifest.deltas[&q].scale), (2, 2.828_427));
    });
}

#[test]
fn the_first_pattern_that_matches_counts_in_the_order_of_the_file() {
    let files = Files::plain().configured(
        "alpha_pattern",
        json!({"q_proj": 16, "layers.0.self_attn.q_proj": 2, "v": 1, "_proj": 1}),
    );
    files.accepted(|manifest| {
        let scales: Vec<f32> = manifest.deltas.values().map(|delta| delta.scale).collect();
        assert_eq!(scales, [8.0, 2.0, 8.0, 2.0]);
    });
}

#[test]
fn every_base_bias_is_needed_for_all_and_none_for_lora_only() {
    let all = Files::plain().configured("bias", json!("all"));
    all.check_refused("missing_tensor", "self_attn.q_proj.bias");
    let mut all = all;
    for layer in 0..2 {
        let module = |proj: &str| format!("model.layers.{layer}.self_attn.{proj}");
        all = all
            .with(&format!("{}.base_layer.bias", module("q_proj")), &[12])
            .with(&format!("{}.bias", module("k_proj")), &[6])
            .with(&format!("{}.base_layer.bias", module("v_proj")), &[6]);
    }
    all.accepted(|manifest| assert_eq!(manifest.biases.len(), 6));
    all.clone().configured("bias", json!("none")).check_refused("superfluous_tensor", "bias");

    let only = Files::plain().configured("bias", json!("lora_only"));
    only.accepted(|manifest| assert!(manifest.biases.is_empty()));
    all.stripped("k_proj")
        .configured("bias", json!("lora_only"))
        .accepted(|manifest| assert_eq!(manifest.biases.len(), 4));
    only.with("model.layers.0.self_attn.q_proj.bias", &[12])
        .check_refused("missing_tensor", "layers.0.self_attn.v_proj.bias");
}

#[test]
fn the_embedding_and_the_head_are_two_sites() {
    let files = Files::plain()
        .configured("target_modules", json!(["q_proj", "v_proj", "embed_tokens", "lm_head"]))
        .with("model.embed_tokens.lora_embedding_A", &[2, 16])
        .with("model.embed_tokens.lora_embedding_B", &[8, 2])
        .with("model.embed_tokens.base_layer.weight", &[16, 8])
        .with_delta("lm_head", (8, 16), 2);
    files.accepted(|manifest| {
        assert_eq!(manifest.deltas[&Site::Embed].a.shape(), [2, 16]);
        assert_eq!(manifest.deltas[&Site::Head].b.shape(), [16, 2]);
        assert_eq!(manifest.copies.len(), 1);
        assert_eq!(manifest.targets, ["embed_tokens", "lm_head", "q_proj", "v_proj"]);
    });
    files
        .clone()
        .configured("lora_bias", json!(true))
        .check_refused("config_conflict", "lora_bias and embed_tokens");
    files
        .without("model.embed_tokens.lora_embedding_A")
        .with("model.embed_tokens.lora_A.weight", &[2, 16])
        .check_refused("unknown_tensor", "model.embed_tokens.lora_A.weight");
}

#[test]
fn modules_to_save_decides_what_a_whole_weight_is() {
    let file = Files::plain().with("lm_head.weight", &[16, 8]);
    file.accepted(|manifest| {
        assert_eq!((manifest.copies.len(), manifest.replaced.len()), (1, 0));
    });
    file.configured("modules_to_save", json!(["lm_head"])).accepted(|manifest| {
        assert_eq!((manifest.copies.len(), manifest.replaced.len()), (0, 1));
    });
}

#[test]
fn modules_to_save_matches_in_the_middle_of_a_word() {
    let mut files = Files::plain().configured("modules_to_save", json!(["norm"]));
    for norm in ["norm", "layers.0.input_layernorm", "layers.1.input_layernorm"] {
        files = files.with(&format!("model.{norm}.weight"), &[8]);
    }
    files.check_refused("missing_tensor", "layers.0.post_attention_layernorm.weight");
    for layer in 0..2 {
        let name = format!("model.layers.{layer}.post_attention_layernorm.weight");
        files = files.with(&name, &[8]);
    }
    files.accepted(|manifest| {
        assert_eq!(manifest.norms.len(), 5);
        assert!(manifest.norms.contains_key(&Norm::Final));
    });
}

#[test]
fn tied_weights_are_both_there_and_equal() {
    let tied = Files::plain()
        .configured("modules_to_save", json!(["embed_tokens"]))
        .configured("ensure_weight_tying", json!(true))
        .with("model.embed_tokens.weight", &[16, 8]);
    tied.check_refused("missing_tensor", "lm_head.weight");
    let mut tied = tied.with("lm_head.weight", &[16, 8]);
    tied.accepted(|manifest| assert_eq!(manifest.replaced.len(), 2));
    tied.tensors.get_mut("base_model.model.lm_head.weight").unwrap().1[5] = 7.0;
    tied.check_refused("tied_weights_differ", "lm_head");
}

#[test]
fn lora_stays_off_the_modules_that_are_saved_whole() {
    Files::plain()
        .configured("target_modules", json!(["q_proj", "v_proj", "lm_head"]))
        .configured("modules_to_save", json!(["lm_head"]))
        .with("lm_head.weight", &[16, 8])
        .accepted(|manifest| assert!(!manifest.deltas.contains_key(&Site::Head)));
    Files::plain()
        .configured("target_modules", json!(["q_proj", "v_proj", "lm_head"]))
        .configured("modules_to_save", json!(["head"]))
        .with("lm_head.weight", &[16, 8])
        .with_delta("lm_head", (8, 16), 2)
        .check_refused("config_conflict", "same module");
}

#[test]
fn layers_restrict_names_but_not_whole_paths() {
    let first = Files::plain().stripped("layers.1.").configured("layers_to_transform", json!(0));
    first.accepted(|manifest| assert_eq!(manifest.deltas.len(), 2));
    first
        .clone()
        .configured("layers_pattern", json!(["h", "layers"]))
        .accepted(|manifest| assert_eq!(manifest.deltas.len(), 2));
    first.clone().configured("layers_pattern", json!("h")).check_refused("no_target", "q_proj");
    first
        .with_delta("model.layers.1.self_attn.q_proj", (8, 12), 2)
        .configured(
            "target_modules",
            json!(["q_proj", "v_proj", "model.layers.1.self_attn.q_proj"]),
        )
        .accepted(|manifest| assert_eq!(manifest.deltas.len(), 3));
    Files::plain()
        .configured("target_modules", json!(".*[qv]_proj"))
        .configured("layers_to_transform", json!([0]))
        .check_refused("config_conflict", "layers_to_transform");
    Files::plain()
        .configured("layers_pattern", json!("layers"))
        .check_refused("config_conflict", "layers_pattern");
}

#[test]
fn exclusion_wins() {
    let files = Files::plain().stripped("layers.1.self_attn.v");
    for excluded in [json!(["layers.1.self_attn.v_proj"]), json!(r".*1\..*v_proj")] {
        files
            .clone()
            .configured("exclude_modules", excluded)
            .accepted(|manifest| assert_eq!(manifest.deltas.len(), 3));
    }
}

#[test]
fn the_magnitude_has_two_spellings_and_one_place() {
    let mut dora = Files::plain().configured("use_dora", json!(true));
    dora.check_refused("missing_tensor", "lora_magnitude_vector");
    for layer in 0..2 {
        let module = format!("model.layers.{layer}.self_attn");
        dora = dora
            .with(&format!("{module}.q_proj.lora_magnitude_vector"), &[12])
            .with(&format!("{module}.v_proj.lora_magnitude_vector.weight"), &[6]);
    }
    dora.accepted(|manifest| {
        assert!(manifest.deltas.values().all(|delta| delta.magnitude.is_some()));
    });
    dora.clone()
        .with("model.layers.0.self_attn.q_proj.lora_magnitude_vector.weight", &[12])
        .check_refused("repeated_tensor", "lora_magnitude_vector");
    dora.configured("use_dora", json!(false)).check_refused("superfluous_tensor", "use_dora");
}
