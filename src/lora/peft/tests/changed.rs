//! What nobody has made yet: files that differ at random from those that are understood.

use proptest::prelude::*;

use super::*;

/// Names of configuration keys and values that stand near the ones that are understood.
fn any_config() -> impl Strategy<Value = Value> {
    let key = prop::sample::select(vec![
        "r",
        "lora_alpha",
        "target_modules",
        "exclude_modules",
        "modules_to_save",
        "bias",
        "use_dora",
        "use_rslora",
        "lora_bias",
        "rank_pattern",
        "alpha_pattern",
        "layers_to_transform",
        "layers_pattern",
        "init_lora_weights",
        "ensure_weight_tying",
        "task_type",
        "peft_type",
        "x",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3_i64..20).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec![
            "q_proj",
            "v_proj",
            ".*[qv]_proj",
            "norm",
            "lm_head",
            "embed_tokens",
            "all-linear",
            "all",
            "lora_only",
            "none",
            "layers",
            "(",
            "",
            "LORA",
            "model.layers.1.self_attn.q_proj",
        ])
        .prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(2, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((".{0,8}|[qv]_proj", inner), 0..4)
                .prop_map(|entries| entries.into_iter().collect()),
        ]
    });
    prop::collection::vec((key, value), 0..4).prop_map(|changes| {
        let mut config = Files::plain().config;
        for (key, value) in changes {
            config[key] = value;
        }
        config
    })
}

fn all_values(manifest: &Manifest<'_>) -> impl Iterator<Item = f32> {
    manifest.deltas.values().flat_map(|delta| delta.a.values().chain(delta.b.values()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn changed_bytes_are_refused_or_still_an_adapter(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
        header_only in any::<bool>(),
    ) {
        let files = Files::plain();
        let mut weights = files.weights();
        let length = if header_only { 1200 } else { weights.len() };
        for (index, byte) in changes {
            weights[index.index(length)] = byte;
        }
        if let Some(cut) = cut {
            weights.truncate(cut.index(length));
        }
        let config = files.config.to_string();
        match read(config.as_bytes(), &weights, &TINY, &Limits::default()) {
            Ok(manifest) => {
                prop_assert_eq!(manifest.deltas.len(), 4);
                prop_assert!(all_values(&manifest).all(f32::is_finite));
            }
            Err(refusal) => prop_assert!(refusal.to_string().len() < 2000),
        }
    }

    #[test]
    fn changed_configurations_are_refused_or_mean_what_the_tensors_are(config in any_config()) {
        let weights = Files::plain().weights();
        match read(config.to_string().as_bytes(), &weights, &TINY, &Limits::default()) {
            Ok(manifest) => {
                prop_assert_eq!(manifest.deltas.len(), 4);
                prop_assert!(manifest.deltas.values().all(|delta| delta.scale > 0.0 && delta.rank == 2));
            }
            Err(refusal) => prop_assert!(refusal.to_string().len() < 2000),
        }
    }

    #[test]
    fn changed_text_of_a_configuration_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let files = Files::plain();
        let mut config = files.config.to_string().into_bytes();
        for (index, byte) in changes {
            let index = index.index(config.len());
            config[index] = byte;
        }
        let _outcome = read(&config, &files.weights(), &TINY, &Limits::default()).map(|_| ());
    }
}
