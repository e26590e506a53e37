//! Files that are made to take long.

use std::time::Instant;

use super::{super::pattern::Compiler, *};

/// A base with as many modules as any that is served.
const LARGE: Sites = Sites { layers: 126, ..SMOLLM2 };

#[track_caller]
fn check_quick(what: &str, config: &Value, weights: &[u8]) {
    let begun = Instant::now();
    let outcome =
        read(config.to_string().as_bytes(), weights, &LARGE, &Limits::default()).map(|_| ());
    let time = begun.elapsed();
    println!("{what}: {time:?}, {outcome:?}");
    assert!(time < PATIENCE, "{what} took {time:?}");
}

#[test]
fn hostile_configurations_cost_little() {
    let plain = Files::plain();
    let weights = plain.weights();
    let with = |key: &str, value: Value| plain.clone().configured(key, value).config;
    let patterns = |pattern: &dyn Fn(usize) -> String, count: usize| -> Value {
        (0..count).map(|index| (pattern(index), json!(2))).collect()
    };
    for family in [
        |n| format!("(.*a.*|.*l.*|.*_.*){{{n}}}z"),
        |n| format!("(.?){{{n}}}x"),
        |n| format!("(.*[a-z]){{{n}}}!"),
        |n| format!("((.{{100}}){{100}}){{{n}}}"),
        |n| format!("([a-y.]|[a-x_]|[a-w0-9]){{{n}}}!"),
        |n: usize| format!("(a+)+$|.*(q|v){{{n}}}_proj"),
    ] {
        let different = |n: usize, index: usize| format!("{}|{}", family(n), 100 + index);
        let is_small =
            |n: &usize| Compiler::new().suffix("rank_pattern", &different(*n, 0)).is_ok();
        let largest = (1..1000).rev().find(is_small).unwrap_or(1);
        let different = |index| different(largest, index);
        let ranks = with("rank_pattern", patterns(&different, 64));
        check_quick(&family(largest), &ranks, &weights);
    }
    check_quick(
        "names",
        &with("alpha_pattern", patterns(&|n| format!("{n}......................_proj"), 4096)),
        &weights,
    );
    let names: Vec<String> = (0..4096).map(|n| format!("{n}{}", ".a".repeat(100))).collect();
    check_quick("targets", &with("target_modules", json!(names)), &weights);
    check_quick("saved", &with("modules_to_save", json!(names)), &weights);
    check_quick("numbers", &with("layers_to_transform", json!(vec![1; 400_000])), &weights);
    check_quick("unknown", &with("x", json!(vec![json!([]); 300_000])), &weights);
}

#[test]
fn hostile_headers_cost_little() {
    let config = Files::plain().config;
    let file = |header: &str| [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    let entry = |n: usize| format!(r#""{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#);
    for count in [20_000, 60_000] {
        let entries = (0..count).map(entry).collect::<Vec<_>>().join(",");
        check_quick("tensors", &config, &file(&format!("{{{entries}}}")));
    }
    let axes = "1,".repeat(2_000_000);
    let header = format!(r#"{{"a":{{"dtype":"F32","shape":[{axes}1],"data_offsets":[0,0]}}}}"#);
    check_quick("axes", &config, &file(&header));
    let notes = (0..250_000).map(|n| format!(r#""{n}":"""#)).collect::<Vec<_>>().join(",");
    check_quick("metadata", &config, &file(&format!(r#"{{"__metadata__":{{{notes}}}}}"#)));
    check_quick("nested", &config, &file(&"[".repeat(4 << 20)));
    check_quick("newlines", &config, &file(&"\n".repeat(4 << 20)));
    check_quick("text", &config, &file(&format!("{{\"{}", "ä".repeat(2_000_000))));
}
