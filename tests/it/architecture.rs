//! Who may name whom. The architecture is what is absent.

use std::{collections::BTreeSet, path::Path};

/// A module and the modules of ours that it may name. `main`, `cli` and `config` wire and see all.
const MAY_NAME: [(&str, &[&str]); 15] = [
    ("http", &["adapter", "engine", "ledger", "store", "telemetry", "tenant", "text", "words"]),
    ("engine", &["lora", "model", "telemetry"]),
    ("adapter", &["lora", "store", "telemetry", "tenant"]),
    ("model", &["kernels", "lora"]),
    ("lora", &["kernels", "words"]),
    ("store", &[]),
    ("tenant", &["store"]),
    ("ledger", &["store", "tenant"]),
    ("text", &[]),
    ("words", &[]),
    ("kernels", &[]),
    ("bench", &[]),
    ("catalog", &[]),
    ("telemetry", &["config"]),
    ("config", &["catalog", "store", "tenant"]),
];

/// Crates that only some places may name.
const KEPT_TO: [(&str, &[&str]); 9] = [
    ("axum", &["http"]),
    (
        "candle_core",
        &[
            "engine/mod.rs",
            "engine/step.rs",
            "engine/tests",
            "engine/worker.rs",
            "kernels",
            "model",
            "text/error.rs",
            "text/gguf.rs",
            "cli",
        ],
    ),
    ("clap", &["cli", "config", "config.rs"]),
    ("hf_hub", &["catalog"]),
    ("multer", &["http"]),
    ("object_store", &["store"]),
    ("opentelemetry", &["http/spans.rs", "http/tests", "telemetry"]),
    ("opentelemetry_otlp", &["telemetry"]),
    ("rustls", &["http"]),
];

/// Every source file below `src` with its text, without what follows its first test module.
fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|end| end == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    let tests = ["tests.rs", "fake.rs", "fixture.rs", "double.rs"];
    paths.retain(|path| !tests.iter().any(|name| path.ends_with(name)));
    let read = |path: &std::path::PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        let code = text.split("#[cfg(test)]\nmod ").next().unwrap().to_owned();
        let code = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        (name, code.collect::<Vec<_>>().join("\n"))
    };
    paths.iter().map(read).collect()
}

/// The modules of ours that a text names by `crate::`.
fn named(code: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        let group = after.strip_prefix('{').map(|list| {
            let mut depth = 1;
            let end = list.find(|c| {
                depth += i32::from(c == '{') - i32::from(c == '}');
                depth == 0
            });
            list[..end.unwrap_or(list.len())].to_owned()
        });
        let firsts = match &group {
            None => vec![after],
            Some(list) => {
                let mut depth = 0;
                let outer = |c: char| {
                    depth += i32::from(c == '{') - i32::from(c == '}');
                    c == ',' && depth == 0
                };
                list.split(outer).collect()
            }
        };
        for first in firsts {
            let word: String =
                first.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            named.insert(word);
        }
    }
    named
}

#[test]
fn modules_name_only_whom_they_may() {
    let modules: Vec<&str> = MAY_NAME.iter().map(|(module, _)| *module).collect();
    for (file, code) in sources() {
        let module = file.split('/').next().unwrap().trim_end_matches(".rs");
        let Some((_, allowed)) = MAY_NAME.iter().find(|(name, _)| *name == module) else {
            continue;
        };
        for other in named(&code) {
            let ours = modules.contains(&other.as_str()) && other != module;
            assert!(!ours || allowed.contains(&other.as_str()), "src/{file} names {other}");
        }
    }
}

#[test]
fn libraries_stay_where_they_belong() {
    for (file, code) in sources() {
        for (library, places) in KEPT_TO {
            let here =
                places.iter().any(|place| file == *place || file.starts_with(&format!("{place}/")));
            assert!(here || !code.contains(&format!("{library}::")), "src/{file} names {library}");
        }
    }
}

#[test]
fn the_scheduler_knows_no_tensor_no_runtime_and_no_name() {
    let pure = ["scheduler.rs", "scheduler/", "sequence.rs", "pages.rs", "waiting.rs", "slots.rs"];
    for (file, code) in sources() {
        if pure.iter().any(|pure| file.starts_with(&format!("engine/{pure}"))) {
            for word in ["tokio", "candle", "Tensor", "std::fs", "AdapterName", "Instant::now"] {
                assert!(!code.contains(word), "src/{file} names {word}");
            }
        }
    }
}

#[test]
fn unsafe_code_is_in_the_kernels_and_where_a_base_is_mapped() {
    for (file, code) in sources() {
        let allowed = file.starts_with("kernels/") || file == "model/mapped.rs";
        assert!(allowed || !code.contains("unsafe "), "src/{file} has unsafe code");
    }
}
