//! What others have made: the project's own adapters, PEFT's of every kind, real configurations, and bad ones.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use super::{
    super::{CONFIG_FILE, WEIGHTS_FILE, config::Config, plan::Plan},
    *,
};
use crate::lora::site::{Proj, Site};

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn file(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&file(path)).unwrap()
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<_> = fs::read_dir(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    folders
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

#[test]
fn the_projects_adapters_are_read() {
    let expected = [
        ("formal", 12 * 4, 64),
        ("german", 30 * 5, 16),
        ("hashtag", 30 * 2, 8),
        ("medcode", 30 * 4, 8),
        ("pirate", 30 * 2, 8),
        ("sentiment", 30 * 2, 4),
        ("sql", 30 * 4, 32),
        ("support-json", 30 * 7, 16),
    ];
    let folders = folders(&project("adapters"));
    assert_eq!(folders.iter().map(|path| name(path)).collect::<Vec<_>>(), expected.map(|e| e.0));
    for (folder, (name, sites, rank)) in folders.iter().zip(expected) {
        let weights = file(&folder.join(WEIGHTS_FILE));
        let config = file(&folder.join(CONFIG_FILE));
        let manifest = read(&config, &weights, &SMOLLM2, &Limits::default()).unwrap();
        assert_eq!((manifest.deltas.len(), manifest.rank), (sites, rank), "{name}");
        assert_eq!(manifest.norms.len(), if name == "hashtag" { 61 } else { 0 }, "{name}");
        let dora = manifest.deltas.values().filter(|delta| delta.magnitude.is_some()).count();
        assert_eq!(dora, if name == "medcode" { sites } else { 0 }, "{name}");
        for (site, delta) in &manifest.deltas {
            let strength = (delta.rank, delta.scale);
            let expected = match (name, site) {
                ("formal", Site::Layer(18..=29, _)) => (64, 2.0),
                ("german", Site::Layer(0..=3, Proj::Q | Proj::V | Proj::O)) => (4, 2.0),
                ("german", Site::Layer(_, Proj::Down)) => (8, 3.0),
                ("sql", _) => (32, 1.0),
                ("formal", _) => panic!("formal is on layers 18 to 29 alone"),
                _ => (rank, 2.0),
            };
            assert_eq!(strength, expected, "{name}: {site}");
        }
    }
}

/// A model folder's sites, as its config.json has them.
fn sites_of(model: &Path) -> Sites {
    let config = json_file(&model.join("config.json"));
    let number = |key: &str| config[key].as_u64().and_then(|n| usize::try_from(n).ok());
    let flag = |key: &str| config[key].as_bool().unwrap_or_default();
    let heads = number("num_attention_heads").unwrap();
    let hidden = number("hidden_size").unwrap();
    let width = number("head_dim").unwrap_or(hidden / heads);
    Sites {
        layers: number("num_hidden_layers").unwrap(),
        hidden,
        attention: heads * width,
        kv: number("num_key_value_heads").unwrap() * width,
        ffn: number("intermediate_size").unwrap(),
        vocab: number("vocab_size").unwrap(),
        qkv_bias: flag("attention_bias") || config["model_type"] == "qwen2",
        o_bias: flag("attention_bias"),
        mlp_bias: flag("mlp_bias"),
    }
}

/// What of an adapter's kind is not served.
const REFUSED: [(&str, &str); 2] =
    [("trainable-tokens", "unsupported_feature"), ("save-linear", "saved_projection")];

#[test]
fn every_kind_of_adapter_that_peft_writes_is_read() {
    let mut count = 0;
    for model in folders(&project("tests/fixtures/models")) {
        let sites = sites_of(&model);
        for folder in folders(&model.join("adapters")) {
            count += 1;
            let weights = file(&folder.join(WEIGHTS_FILE));
            let config = file(&folder.join(CONFIG_FILE));
            let outcome = read(&config, &weights, &sites, &Limits::default());
            let refused = REFUSED.into_iter().find(|(case, _)| *case == name(&folder));
            match (outcome, refused) {
                (Ok(manifest), None) => check_complete(&manifest, &weights, name(&folder)),
                (Err(refusal), Some((_, code))) => assert_eq!(refusal.code(), code, "{refusal}"),
                (outcome, _) => panic!("{}: {outcome:?}", folder.display()),
            }
        }
    }
    assert!(count >= 50, "{count} adapters");
}

/// Nothing of the file was left out, and nothing is there twice.
fn check_complete(manifest: &Manifest<'_>, weights: &[u8], case: &str) {
    let deltas = manifest.deltas.values().flat_map(|delta| {
        [Some(&delta.a), Some(&delta.b), delta.magnitude.as_ref(), delta.bias.as_ref()]
    });
    let whole = manifest.norms.values().chain(manifest.biases.values());
    let whole = whole.chain(manifest.replaced.values());
    let whole = whole.chain(manifest.copies.iter().map(|(_, view)| view));
    let read: usize = deltas.flatten().chain(whole).map(|view| view.bytes().len()).sum();
    let (header, _) = weights.split_first_chunk().unwrap();
    let header = usize::try_from(u64::from_le_bytes(*header)).unwrap();
    assert_eq!(read, weights.len() - 8 - header, "{case}");
    let expect = |wanted: &str, found: bool| {
        assert_eq!(case.contains(wanted), found, "{case}");
    };
    expect("dora", manifest.deltas.values().any(|delta| delta.magnitude.is_some()));
    expect("lora-bias", manifest.deltas.values().any(|delta| delta.bias.is_some()));
    expect("bias-all", !manifest.biases.is_empty());
    expect("save-norm", !manifest.norms.is_empty());
}

#[test]
fn modules_are_selected_as_by_peft() {
    let sites = Sites { layers: 12, ..SMOLLM2 };
    let cases = json_file(&project("tests/fixtures/peft_targets.json"));
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 160);
    for case in cases {
        let mut config = case["config"].clone();
        config["peft_type"] = json!("LORA");
        let plan = Config::read(config.to_string().as_bytes(), &Limits::default())
            .and_then(|config| Plan::new(&config, &sites));
        if case["refused"] == true {
            assert!(plan.is_err(), "{config}: {plan:?}");
            continue;
        }
        let plan = plan.unwrap_or_else(|refusal| panic!("{config}: {refusal}"));
        let deltas: BTreeMap<String, (usize, f32)> = plan
            .deltas
            .iter()
            .map(|(site, strength)| (site.to_string(), (strength.rank, strength.scale)))
            .collect();
        let expected: BTreeMap<String, (usize, f32)> =
            serde_json::from_value(case["deltas"].clone()).unwrap();
        assert_eq!(deltas, expected, "{config}");
        let saved = plan.replaced.iter().map(ToString::to_string);
        let mut saved: Vec<_> = saved.chain(plan.norms.iter().map(ToString::to_string)).collect();
        saved.sort();
        assert_eq!(json!(saved), case["saved"], "{config}");
    }
}

/// What becomes of the cases that leave it to us.
const DECIDED: [(&str, &str); 17] = [
    ("extreme-finite-weights", "extreme_weight"),
    ("extra-tensors", "superfluous_tensor"),
    ("missing-tensors", "missing_tensor"),
    ("unprefixed-names", "unprefixed_tensor"),
    ("config-no-peft-type", "config_missing_key"),
    ("config-5mb", "config_too_large"),
    ("alpha-negative", "config_value"),
    ("alpha-1e30", "scale_out_of_range"),
    ("alpha-zero", "config_value"),
    ("rank-pattern-bad-regex", "unusable_pattern"),
    ("target-regex-redos", "config_conflict"),
    ("unsupported-pissa", "unsupported_initialisation"),
    ("unsupported-lora-bias", "accepted"),
    ("unsupported-qalora", "unsupported_feature"),
    ("control-good-mini", "accepted"),
    ("control-good-f16", "accepted"),
    ("dtype-i64", "unsupported_dtype"),
];

#[test]
fn bad_adapters_are_judged_as_they_must_be() {
    let folder = project("tests/fixtures/bad");
    let cases = json_file(&folder.join("cases.json"));
    let cases = cases.as_array().unwrap();
    assert!(cases.len() >= 78, "{} cases", cases.len());
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let file = |file: &str| fs::read(folder.join(name).join(file)).ok();
        let mut files = (file(CONFIG_FILE), file(WEIGHTS_FILE));
        if let (Some(config), Some(length)) = (&mut files.0, case["config_padded_to"].as_u64()) {
            config.resize(usize::try_from(length).unwrap(), b' ');
        }
        let begun = Instant::now();
        let outcome = match &files {
            (Some(config), Some(weights)) => {
                read(config, weights, &SMOLLM2, &Limits::default()).map(|_| ())
            }
            // Told by whoever looks at the folder.
            (None, _) => Err(Refusal::MissingFile { file: CONFIG_FILE }),
            (_, None) if name == "pickle-bin" => Err(Refusal::Pickle { file: "adapter_model.bin" }),
            (Some(config), None) => match read(config, b"", &SMOLLM2, &Limits::default()) {
                Err(mlx @ Refusal::Mlx { .. }) => Err(mlx),
                _ => Err(Refusal::MissingFile { file: WEIGHTS_FILE }),
            },
        };
        let time = begun.elapsed();
        assert!(time < PATIENCE, "{name} took {time:?}");
        check_outcome(case, name, outcome.as_ref());
    }
}

fn check_outcome(case: &Value, name: &str, outcome: Result<&(), &Refusal>) {
    let message = outcome.map_or_else(ToString::to_string, |()| "accepted".to_owned());
    println!("{name}: {message}");
    match case["expect"].as_str().unwrap() {
        "ok" => assert!(outcome.is_ok(), "{name}: {message}"),
        "4xx" => assert!(outcome.is_err(), "{name}"),
        _ => assert!(DECIDED.iter().any(|(decided, _)| *decided == name), "{name} is undecided"),
    }
    if let Some((_, code)) = DECIDED.iter().find(|(decided, _)| *decided == name) {
        assert_eq!(outcome.map_or_else(Refusal::code, |()| "accepted"), *code, "{message}");
    }
    let words = case["message_should_mention"].as_str().unwrap().to_lowercase();
    let mentioned = |word: &str| message.to_lowercase().contains(word.trim());
    if outcome.is_err() {
        assert!(words.split('/').any(mentioned), "{name}: {words} is not in: {message}");
    }
    assert!(message.len() < 1000 && !message.contains('\n'), "{name}: {message}");
}

#[test]
fn real_configurations_are_understood() {
    let limits = Limits::default();
    let plan = |file: &[u8]| Plan::new(&Config::read(file, &limits)?, &SMOLLM2);
    let mut count = 0;
    for entry in fs::read_dir(project("tests/fixtures/configs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        count += 1;
        let config = json_file(&path);
        let names = config["target_modules"].as_array();
        let ours = names
            .is_some_and(|names| names.iter().any(|name| name == "o_proj" || name == "q_proj"));
        let expected = match (config["peft_type"].as_str(), config["task_type"].as_str()) {
            (None, _) => "mlx_adapter",
            (Some("LORA"), None | Some("CAUSAL_LM")) if ours => "understood",
            (Some("LORA"), None | Some("CAUSAL_LM")) => "no_target",
            (Some("LORA"), Some(_)) => "unsupported_task_type",
            (Some(_), _) => "unsupported_peft_type",
        };
        let outcome = plan(&file(&path));
        let code = outcome.as_ref().map_or_else(Refusal::code, |_| "understood");
        assert_eq!(code, expected, "{}: {outcome:?}", path.display());
    }
    assert_eq!(count, 36);
}
