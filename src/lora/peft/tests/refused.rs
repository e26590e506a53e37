//! What is refused, and how it is named.

use super::*;

#[test]
fn settings_that_change_the_maths_are_refused_and_others_are_not() {
    for (key, value, code) in [
        ("layer_replication", json!([[0, 1]]), "unsupported_feature"),
        ("alora_invocation_tokens", json!([]), "unsupported_feature"),
        ("arrow_config", json!({"top_k": 3}), "unsupported_feature"),
        ("megatron_config", json!({"x": 1}), "unsupported_feature"),
        ("use_bdlora", json!({"nblocks": 4}), "unsupported_feature"),
        ("init_lora_weights", json!("pissa_niter_16"), "unsupported_initialisation"),
        ("init_lora_weights", json!("olora"), "unsupported_initialisation"),
        ("init_lora_weights", json!("loftq"), "unsupported_initialisation"),
        ("invented_in_2031", json!(1), "unknown_key"),
        ("chorus", json!({"a": 1}), "chorus_object"),
        ("choir", json!({"a": 1}), "unknown_key"),
        ("task_type", json!("SEQ_CLS"), "unsupported_task_type"),
        ("use_dora", json!("yes"), "config_value"),
        ("bias", json!("some"), "config_value"),
        ("target_modules", json!(["q_proj", 7]), "config_value"),
        ("target_modules", json!(null), "config_missing_key"),
        ("target_modules", json!(["norm"]), "target_is_a_norm"),
        ("modules_to_save", json!(["k_proj"]), "saved_projection"),
        ("modules_to_save", json!(["classifier"]), "saved_module_unknown"),
        ("layers_to_transform", json!([-1]), "config_value"),
        ("layers_pattern", json!("l.*"), "unusable_pattern"),
        ("r", json!(2.0), "config_value"),
        ("r", json!(513), "rank_too_high"),
        ("rank_pattern", json!({"q_proj": 0}), "config_value"),
        ("rank_pattern", json!({"q_proj": 1_u64 << 40}), "rank_too_high"),
        ("alpha_pattern", json!({"q_proj": "8"}), "config_value"),
        ("alpha_pattern", json!([]), "config_value"),
        ("lora_alpha", json!(1e-300), "scale_out_of_range"),
        ("lora_alpha", json!(1e30), "scale_out_of_range"),
    ] {
        let files = Files::plain().configured(key, value);
        assert_eq!(files.refusal().code(), code, "{key}: {}", files.refusal());
    }
    for (key, value) in [
        ("fan_in_fan_out", json!(true)),
        ("init_lora_weights", json!("gaussian")),
        ("init_lora_weights", json!(false)),
        ("lora_dropout", json!(0.5)),
        ("auto_mapping", json!({"unsloth_fixed": true})),
        ("task_type", json!(null)),
        ("invented_in_2031", json!(false)),
        ("target_parameters", json!([])),
        ("target_modules", json!(["q_proj", "v_proj", "c_attn"])),
        ("rank_pattern", json!({"c_attn": 8})),
        ("target_modules", json!("(a+)+$|.*(q|v)_proj")),
        ("layers_to_transform", json!([])),
    ] {
        Files::plain().configured(key, value).accepted(|manifest| {
            assert_eq!(manifest.deltas.len(), 4, "{key}");
        });
    }
}

#[test]
fn tensors_must_fit_the_base_and_the_configuration() {
    let a = "model.layers.0.self_attn.q_proj.lora_A.weight";
    let b = "model.layers.0.self_attn.q_proj.lora_B.weight";
    let plain = Files::plain;
    plain().with(a, &[3, 8]).check_refused("rank_mismatch", "rank 3");
    plain().with(b, &[12, 3]).check_refused("rank_mismatch", "rank 3");
    plain().with(a, &[2, 9]).check_refused("shape_mismatch", "[2, 9] where [2, 8]");
    plain().with(a, &[2, 8, 1]).check_refused("shape_mismatch", "[2, 8, 1]");
    plain().with(a, &[16]).check_refused("shape_mismatch", "[16]");
    plain().without(b).check_refused("missing_tensor", "q_proj.lora_B.weight");
    plain().with("model.norm.weight", &[8]).check_refused("superfluous_tensor", "model.norm");
    plain()
        .with_delta("model.layers.2.self_attn.q_proj", (8, 12), 2)
        .check_refused("unknown_module", "model.layers.2.self_attn.q_proj");
    plain()
        .with("model.layers.0.self_attn.q_proj.lora_A.default.weight", &[2, 8])
        .check_refused("unknown_module", "lora_A.default");
    plain()
        .with("model.layers.0.self_attn.q_proj.base_layer.weight", &[12, 8])
        .check_refused("superfluous_tensor", "base_layer");
    plain()
        .with("model.layers.0.self_attn.q_proj.lora_B.bias", &[12])
        .check_refused("superfluous_tensor", "lora_bias");
}

#[test]
fn values_that_are_no_weights_are_named() {
    let name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight";
    for (value, code) in [
        (f32::NAN, "non_finite_weight"),
        (f32::NEG_INFINITY, "non_finite_weight"),
        (-1e38, "extreme_weight"),
        (65_505.0, "extreme_weight"),
    ] {
        let mut files = Files::plain();
        files.tensors.get_mut(name).unwrap().1[7] = value;
        files.check_refused(code, "v_proj.lora_B.weight");
        assert!(files.refusal().to_string().contains("element 7"), "{}", files.refusal());
    }
}

#[test]
fn other_kinds_of_file_are_recognised() {
    let config = Files::plain().config.to_string();
    let read = |weights: &[u8]| {
        read(config.as_bytes(), weights, &TINY, &Limits::default()).unwrap_err().to_string()
    };
    assert!(read(b"").contains("empty"));
    assert!(read(b"PK\x03\x04 archive/data.pkl").contains("pickle"));
    assert!(read(b"\x80\x04\x95\x10\0\0\0\0\0\0\0}").contains("pickle"));
    assert!(read(b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0").contains("GGUF"));
    assert!(read(b"\n<!DOCTYPE html><html>").contains("HTML"));
    assert!(read(b"abc").contains("truncated"));
}

#[test]
fn limits_are_the_servers() {
    let files = Files::plain();
    let (config, weights) = (files.config.to_string(), files.weights());
    let read = |limits: Limits| read(config.as_bytes(), &weights, &TINY, &limits).map(|_| ());
    let bytes = weights.len() as u64;
    assert_eq!(read(Limits { max_rank: 2, max_bytes: bytes }), Ok(()));
    let refusal = read(Limits { max_rank: 1, max_bytes: bytes }).unwrap_err();
    assert_eq!(refusal.code(), "rank_too_high");
    let refusal = read(Limits { max_rank: 2, max_bytes: bytes - 1 }).unwrap_err();
    assert_eq!(refusal, Refusal::WeightsTooLarge { bytes, max: bytes - 1 });
}
