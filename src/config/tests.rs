use std::fs;

use clap::{CommandFactory as _, Parser};

use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    serve: ServeArgs,
}

fn typed(words: &[&str]) -> ServeArgs {
    Line::try_parse_from([&["serve"], words].concat()).unwrap().serve
}

fn refused(words: &[&str]) -> String {
    let error = Line::try_parse_from([&["serve"], words].concat()).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    error.to_string()
}

fn file(dir: &tempfile::TempDir, text: &str) -> String {
    let path = dir.path().join("chorus.toml");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "threads = 3\nmax-running = 5\nkv-bytes = \"64MiB\"\n");
    let serve = Serve::try_from(typed(&["--config", &path, "--threads", "7"])).unwrap();
    assert_eq!(serve.engine.threads.get(), 7);
    assert_eq!(serve.engine.max_running, 5);
    assert_eq!(serve.engine.kv_bytes, ByteSize(64 << 20));
    assert_eq!(serve.engine.max_waiting, 256);
    assert_eq!(serve.base.model, catalog::DEFAULT);
}

#[test]
fn every_knob_can_be_written_in_the_file() {
    let text = r#"
        model = "base.gguf"
        models-dir = "m"
        served-model-name = "ours"
        adapters = "a"
        listen = "0.0.0.0:9"
        metrics-listen = "10.0.0.1:9"
        tls-cert = "tls.crt"
        tls-key = "tls.key"
        allowed-hosts = "llm.example.org, llm"
        open = true
        device = "cpu"
        deterministic = true
        device-adapter-bytes = "3GiB"
        precision = "exact"
        kernels = "portable"
        kv-dtype = "f32"
        prefix-cache = false
        guess-tokens = 3
        threads = 1
        adapter-header = "X-Voice"
        store = "s3://bucket/prefix"
        store-refresh = "1s"
        spool = "/var/tmp"
        journals = "/var/lib/journals"
        lora-root = "/srv/loras"
        metrics-open = true
        lora-info = "digests"
        adapter-cache-bytes = "2GiB"
        adapter-dtype = "int8"
        adapter-wait = 7
        adapter-line = 2
        adapter-slots = 3
        max-rank = 4
        kv-bytes = 1048576
        max-context = 5
        step-tokens = 6
        max-running = 7
        max-waiting = 8
        max-wait = "3s"
        request-timeout = "2m"
        drain-time = "1.5s"
        chat-tokens = 9
        max-connections = 10
        max-body-bytes = "1MB"
        log = "warn"
        log-format = "json"
        otlp-traces-endpoint = "http://127.0.0.1:4318/v1/traces"
    "#;
    let dir = tempfile::tempdir().unwrap();
    let written = Serve::try_from(typed(&["--config", &file(&dir, text)])).unwrap();
    let switches = ["open", "metrics-open", "deterministic"];
    let mut flags: Vec<_> = switches.map(|switch| format!("--{switch}")).into();
    let is_switch = |line: &str| switches.iter().any(|switch| line.trim().starts_with(switch));
    for line in text.lines().filter(|line| line.contains('=') && !is_switch(line)) {
        let (key, value) = line.trim().split_once(" = ").unwrap();
        flags.extend([format!("--{key}"), value.trim_matches('"').to_owned()]);
    }
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    assert_eq!(written, Serve::try_from(typed(&flags)).unwrap());
    let knobs = Line::command().get_arguments().count() - 1; // all but --config
    assert_eq!(knobs, text.lines().filter(|line| line.contains('=')).count());
}

#[test]
fn every_knob_has_a_variable_of_its_name_and_a_line_in_the_guide() {
    let guide = include_str!("../../docs/operating.md");
    for knob in Line::command().get_arguments() {
        let flag = knob.get_long().unwrap();
        let variable = format!("CHORUS_{}", flag.to_uppercase().replace('-', "_"));
        assert_eq!(knob.get_env().unwrap(), variable.as_str());
        assert!(guide.contains(&format!("`--{flag}")), "--{flag} is not in docs/operating.md");
    }
}

#[test]
fn the_defaults_are_those_that_help_promises() {
    let mut words = Vec::new();
    for knob in Line::command().get_arguments() {
        let help = knob.get_help().unwrap().to_string();
        let promised = help.rsplit_once("[default: ").and_then(|(_, end)| end.strip_suffix(']'));
        // With a space it is a description: "all cores".
        if let Some(promised) = promised.filter(|promised| !promised.contains(' ')) {
            words.extend([format!("--{}", knob.get_long().unwrap()), promised.to_owned()]);
        }
    }
    assert!(words.len() > 30, "{words:?}");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut promised = Serve::try_from(typed(&words)).unwrap();
    let mut default = Serve::try_from(typed(&[])).unwrap();
    promised.adapters.folder_is_given = false;
    for serve in [&mut promised, &mut default] {
        // `./models` and `models` are one folder.
        let models = &mut serve.base.models.folder;
        *models = models.components().filter(|part| part.as_os_str() != ".").collect();
        let adapters = &mut serve.adapters.folder;
        *adapters = adapters.components().filter(|part| part.as_os_str() != ".").collect();
        let Location::Folder(store) = &mut serve.store.location else { panic!("a folder") };
        *store = store.components().filter(|part| part.as_os_str() != ".").collect();
    }
    assert_eq!(promised, default);
}

#[test]
fn the_file_is_named_with_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    for (text, line, word) in [
        ("threads = 2\nthread = 2\n", "line 2", "`thread`"),
        ("\nkv-bytes = \"lots\"\n", "line 2", "512MiB"),
        ("device = \"cuda\"\n", "line 1", "no CUDA"),
        ("max-running = 0\n", "line 1", "0"),
        ("open = \n", "line 1", ""),
    ] {
        let error = Serve::try_from(typed(&["--config", &file(&dir, text)])).unwrap_err();
        let shown = error.to_string();
        assert!(shown.contains("chorus.toml") && shown.contains(line), "{shown}");
        assert!(shown.contains(word), "{shown}");
        assert_eq!(shown.lines().count(), 1, "{shown}");
    }
    let absent = Serve::try_from(typed(&["--config", "/absent/chorus.toml"])).unwrap_err();
    assert!(absent.to_string().contains("/absent/chorus.toml"), "{absent}");
}

#[test]
fn localhost_is_an_address() {
    let name = Serve::try_from(typed(&["--listen", "localhost:80"])).unwrap();
    assert_eq!(name.http.listen, SocketAddr::from((Ipv4Addr::LOCALHOST, 80)));
    assert!(Serve::try_from(typed(&["--open"])).unwrap().http.open && !name.http.open);
}

#[test]
fn scrapers_have_an_address_of_their_own() {
    let both = |listen, metrics| {
        Serve::try_from(typed(&["--listen", listen, "--metrics-listen", metrics]))
    };
    let apart = both("127.0.0.1:80", "127.0.0.1:81").unwrap().http;
    assert_eq!(apart.metrics_listen, Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 81))));
    let one = both("127.0.0.1:80", "localhost:80").unwrap_err().to_string();
    assert!(one.contains("127.0.0.1:80") && one.contains("--listen"), "{one}");
    assert!(both("127.0.0.1:0", "127.0.0.1:0").is_ok());
}

#[test]
fn a_certificate_needs_a_key_and_a_key_a_certificate() {
    for (given, missing) in [("tls-cert", "tls-key"), ("tls-key", "tls-cert")] {
        let half = Serve::try_from(typed(&[&format!("--{given}"), "tls.pem"])).unwrap_err();
        let shown = half.to_string();
        assert!(shown.contains(&format!("{given} is there and {missing} is not")), "{shown}");
    }
    assert_eq!(Serve::try_from(typed(&[])).unwrap().http.tls, None);
}

#[test]
fn misspelt_variables_are_found_among_those_that_others_set() {
    let set = ["CHORUS_THREADS", "CHORUS_THREAD", "CHORUS_PORT", "CHORUS_SERVICE_HOST", "PATH"];
    let found = without_meaning(set.into_iter().map(str::to_owned));
    assert_eq!(found, ["CHORUS_THREAD"]);
}

#[test]
fn bad_command_lines_say_what_is_expected() {
    for (words, word) in [
        (["--kv-bytes", "12 apples"], "512MiB"),
        (["--request-timeout", "soon"], "30s"),
        (["--device", "cuda:0"], "no CUDA"),
        (["--device", "tpu"], "auto or cpu"),
        (["--kv-dtype", "q8_0"], "auto, f16, f32 or int8"),
        (["--adapter-dtype", "int4"], "native or int8"),
        (["--kernels", "sse"], "auto, avx512, avx2 or portable"),
        (["--precision", "bf16"], "int8, int16 or exact"),
        (["--listen", "8080"], "127.0.0.1:8080"),
        (["--adapter-header", "X Adapter"], "X-Adapter"),
        (["--adapter-header", "Host"], "another meaning"),
        (["--allowed-hosts", "https://llm.example.org"], "without port"),
        (["--served-model-name", "a:b"], "`:`"),
        (["--served-model-name", "default"], "mean something else"),
        (["--threads", "0"], "whole number from 1"),
        (["--log-format", "xml"], "json"),
        (["--lora-info", "all"], "auto, names, digests or off"),
        (["--otlp-traces-endpoint", "127.0.0.1:4318"], "http://127.0.0.1:4318/v1/traces"),
        (
            ["--otlp-traces-endpoint", "http://localhost:99999/v1"],
            "http://127.0.0.1:4318/v1/traces",
        ),
        (["--otlp-traces-endpoint", "https:///v1/traces"], "http://127.0.0.1:4318/v1/traces"),
        (["--otlp-traces-endpoint", "http://["], "http://127.0.0.1:4318/v1/traces"),
        (
            ["--otlp-traces-endpoint", "http://me:secret@localhost/v1/traces"],
            "OTEL_EXPORTER_OTLP_HEADERS",
        ),
        (["--tenants", "3"], "--tenants"),
    ] {
        let message = refused(&words);
        assert!(message.contains(word), "{words:?}: {message}");
    }
    let many = Serve::try_from(typed(&["--threads", "5000"])).unwrap_err();
    assert!(many.to_string().contains("5000"));
}
