//! The program as it is typed: exit status, one line on standard error, and which source wins.

use std::{
    env,
    process::{Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

/// Every command here ends by itself; a server that starts instead is a failure, not a hang.
const ENDS_WITHIN: Duration = Duration::from_mins(1);

/// Runs chorus with these arguments and variables, and none of the caller's `CHORUS_*`.
fn chorus(words: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chorus"));
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("CHORUS_") {
            command.env_remove(name);
        }
    }
    command.env("CHORUS_STORE", concat!(env!("CARGO_TARGET_TMPDIR"), "/store-of-the-command-line"));
    command.args(words).envs(variables.iter().copied());
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.expect("the program was just built");
    let id = child.id().to_string();
    let (sender, output) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    let output = output.recv_timeout(ENDS_WITHIN);
    if output.is_err() {
        drop(Command::new("kill").arg(&id).status());
    }
    output.expect("chorus ends by itself").expect("its output can be read")
}

/// The one line of a start that failed.
fn refusal(words: &[&str], variables: &[(&str, &str)]) -> String {
    let output = chorus(words, variables);
    let message = String::from_utf8(output.stderr).expect("messages are UTF-8");
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.starts_with("error: ") && message.ends_with('\n'), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(!message.contains("panicked"), "{message}");
    assert!(output.stdout.is_empty(), "{message}");
    message
}

#[test]
fn a_flag_wins_over_a_variable_and_a_variable_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("chorus.toml");
    std::fs::write(&file, "listen = \"0.0.0.0:1111\"\n").unwrap();
    let file = file.to_str().unwrap();
    let from_file = refusal(&["serve", "--config", file], &[]);
    assert!(from_file.contains("0.0.0.0:1111"), "{from_file}");
    let variables = [("CHORUS_CONFIG", file), ("CHORUS_LISTEN", "0.0.0.0:2222")];
    let from_variable = refusal(&["serve"], &variables);
    assert!(from_variable.contains("0.0.0.0:2222"), "{from_variable}");
    let from_flag = refusal(&["serve", "--listen", "0.0.0.0:3333"], &variables);
    assert!(from_flag.contains("0.0.0.0:3333"), "{from_flag}");
}

#[test]
fn a_start_that_fails_says_why_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let garbage = dir.path().join("garbage.gguf");
    std::fs::write(&garbage, "not a model").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let any = ["--listen", "127.0.0.1:0", "--models-dir", dir.path().to_str().unwrap()];
    for (words, word) in [
        (vec!["--model", "/absent/model.gguf"], "/absent/model.gguf"),
        (vec!["--model", garbage.to_str().unwrap()], "garbage.gguf"),
        (vec!["--model", dir.path().to_str().unwrap()], "it has no config.json; give"),
        (vec!["--model", "/dev/zero"], "neither a regular file nor a directory"),
        (vec!["--config", "/dev/zero"], "longer than 1 MiB"),
        (vec!["--config", "/absent/chorus.toml"], "/absent/chorus.toml"),
        (vec!["--log", "chorus=loud"], "chorus=loud"),
        (vec!["--listen", &taken], "choose another address with --listen"),
        (vec!["--metrics-listen", &taken], "choose another address with --metrics-listen"),
    ] {
        let mut line = vec!["serve"];
        line.extend(any.iter().filter(|_| words[0] != "--listen"));
        line.extend(&words);
        let message = refusal(&line, &[]);
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn a_tokenizer_with_more_tokens_than_the_network_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = crate::world::fixtures().join("models/tied");
    for file in ["config.json", "model.safetensors", "tokenizer_config.json"] {
        std::fs::copy(model.join(file), dir.path().join(file)).unwrap();
    }
    let mut tokenizer = crate::world::json(&model.join("tokenizer.json"));
    let mut one_more = tokenizer["added_tokens"][0].clone();
    one_more["id"] = 320.into();
    one_more["content"] = "<|one_more|>".into();
    tokenizer["added_tokens"].as_array_mut().unwrap().push(one_more);
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let path = dir.path().to_str().unwrap();
    let listen = ["--listen", "127.0.0.1:0", "--models-dir", path];
    let message = refusal(&[&["serve", "--model", path][..], &listen].concat(), &[]);
    assert!(message.contains("has 321 tokens and its network only 320"), "{message}");
}

#[test]
fn command_lines_that_mean_nothing_say_what_would() {
    for (words, parts) in [
        (&["sing"][..], &["`sing`", "chorus --help"][..]),
        (&["pull", "smollm3"], &["smollm3", "smollm2-135m-instruct"]),
        (&["serve", "--thread", "2"], &["`--thread`", "did you mean `--threads`?"]),
        (&["serve", "--xyz", "2"], &["`--xyz`", "chorus serve --help"]),
        (&["serve", "now"], &["`now`", "chorus serve --help"]),
        (&["serve", "--threads"], &["--threads (CHORUS_THREADS)", "a value is expected"]),
        (&["serve", "--threads", "0"], &["`0` for --threads (CHORUS_THREADS)", "from 1 to"]),
        (&["serve", "--threads", "1", "--threads", "2"], &["--threads", "given twice"]),
        (&["usage", "--csv", "--json"], &["--csv", "--json", "exclude each other"]),
        (&["serve", "--threads", "two\nlines"], &["`two\\nlines`", "from 1 to"]),
        (&["serve", "--device", "cuda"], &["--device", "no CUDA", "auto or cpu"]),
        (&["serve", "--log-format", "xml"], &["--log-format", "pretty or json"]),
        (&["serve", "--open=maybe"], &["`maybe` for --open (CHORUS_OPEN)", "true or false"]),
        (&["serve", "--kv-bytes", "lots"], &["--kv-bytes", "MiB"]),
        (&["serve", "--model", ""], &["--model (CHORUS_MODEL)"]),
        (&["completions", "tcsh"], &["`tcsh`", "bash"]),
        (&["completions"], &["<SHELL> is missing"]),
    ] {
        let message = refusal(words, &[]);
        for part in parts {
            assert!(message.contains(part), "{part} is not in {message}");
        }
    }
    assert_eq!(chorus(&["--version"], &[]).status.code(), Some(0));
    assert_eq!(chorus(&["serve", "--help"], &[]).status.code(), Some(0));
    assert!(!chorus(&["completions", "bash"], &[]).stdout.is_empty());
}
