//! `chorus bench` against `chorus serve`: what the one counts is what the other did.

use std::{
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

use crate::world::{Server, fixtures, json};

/// A server on the tiny model, which answers with nonsense at once.
fn server() -> Server {
    let nothing = tempfile::tempdir().unwrap();
    let adapters = nothing.path().to_str().unwrap().to_owned();
    Server::start_on(&fixtures().join("models/tied"), "tiny", &["--adapters", &adapters])
}

fn bench(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chorus"));
    command
        .arg("bench")
        .args(words)
        .env_remove("CHORUS_URL")
        .env_remove("CHORUS_KEY")
        .output()
        .unwrap()
}

/// What it printed, of a run that went well.
fn shown(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn refused(words: &[&str]) -> String {
    let output = bench(words);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    let last = said.lines().last().unwrap().to_owned();
    assert!(last.starts_with("error: ") && !said.contains("panicked"), "{said}");
    last
}

#[tokio::test]
async fn a_run_against_a_real_server_counts_what_was_done() {
    let server = server();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let scenario = path("all.toml");
    std::fs::write(
        &scenario,
        "rate = 50\nrequests = 20\nprompt-words = \"2..6\"\noutput-tokens = \"3..9\"\nwarmup = 1\n\
         slo = \"ttft=1m,e2e=1m\"\n[[tenant]]\nname = \"left\"\n[[tenant]]\nname = \"right\"\nshare = 3\n",
    )
    .unwrap();
    let (json_path, csv, html) = (path("a.json"), path("a.csv"), path("a.html"));
    let words = [
        "--url",
        &server.url,
        "--scenario",
        &scenario,
        "--json",
        &json_path,
        "--csv",
        &csv,
        "--html",
        &html,
    ];
    let table = shown(&bench(&words));
    assert!(table.contains("20 of 20 done") && table.contains("fairness"), "{table}");
    let report = json(Path::new(&json_path));
    assert_eq!(report["requests"]["good"], 20);
    assert_eq!(report["label"], "all");
    assert_eq!(report["settings"]["model"], "tiny");
    let tokens = report["throughput"]["output_tokens"].as_u64().unwrap();
    assert!((20 * 3..=20 * 9).contains(&tokens), "{report}");
    let sum = |tenant: &Value| tenant["throughput"]["output_tokens"].as_u64().unwrap();
    let tenants = report["tenants"].as_array().unwrap();
    assert_eq!(tenants.iter().map(sum).sum::<u64>(), tokens);
    let page = std::fs::read_to_string(&html).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("<svg"));
    assert!(!page.contains("src=") && !page.contains("href=") && !page.contains("url("), "{page}");

    // The same again, as a trace and ten times as fast, and both beside each other.
    let again = path("b.json");
    shown(&bench(&[
        "--url",
        &server.url,
        "--trace",
        &csv,
        "--trace-speed",
        "10",
        "--json",
        &again,
    ]));
    assert_eq!(json(Path::new(&again))["throughput"]["output_tokens"], tokens);
    let both = path("both.html");
    let ratios = shown(&bench(&["--compare", &json_path, &again, "--html", &both]));
    assert!(ratios.contains("output tokens/s") && ratios.contains("B/A"), "{ratios}");
    assert!(std::fs::read_to_string(&both).unwrap().contains("Comparison"));
}

#[tokio::test]
async fn a_chat_is_asked_and_what_is_not_there_is_said() {
    let server = server();
    let small = |more: &[&'static str]| {
        let few = ["--url", server.url.as_str(), "--prompt-words", "3", "--output-tokens", "4"];
        [&few[..], more].concat()
    };
    let chat = bench(&small(&["--api", "chat", "-c", "2", "-n", "4", "--json", "-"]));
    let chat: Value = serde_json::from_str(&shown(&chat)).unwrap();
    assert_eq!(chat["requests"]["done"], 4);
    assert_eq!(chat["throughput"]["output_tokens"], 16);
    let none = refused(&small(&["--adapters", "nobody"]));
    assert!(none.contains("nobody") && none.contains("model_not_found"), "{none}");
    let none = refused(&small(&["--adapters", "@models"]));
    assert!(none.contains("lists no adapters"), "{none}");
}

#[test]
fn what_cannot_be_done_is_said_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let scenario = folder.path().join("wrong.toml");
    std::fs::write(&scenario, "seed = 1\nspeed = 3\n").unwrap();
    let nobody = "http://127.0.0.1:1";
    for (words, parts) in [
        (&["--url", nobody][..], &["does not answer", "--url"][..]),
        (
            &["--scenario", scenario.to_str().unwrap()],
            &["wrong.toml", "line 2", "unknown field `speed`"],
        ),
        (&["--scenario", "/absent/x.toml"], &["/absent/x.toml", "cannot be read"]),
        (
            &["--concurrency", "4", "--rate", "2"],
            &["--concurrency", "--rate", "exclude each other"],
        ),
        (&["--output-tokens", "some"], &["`some` for --output-tokens", "a length is expected"]),
        (&["--slo", "speed=1"], &["--slo", "ttft=500ms"]),
        (&["--compare", "/absent/a.json", "/absent/b.json"], &["/absent/a.json", "cannot be read"]),
        (
            &["--trace", scenario.to_str().unwrap()],
            &["wrong.toml", "neither JSON lines nor a table"],
        ),
    ] {
        let message = refused(words);
        for part in parts {
            assert!(message.contains(part), "{part} is not in {message}");
        }
    }
}
