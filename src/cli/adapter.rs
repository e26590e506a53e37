//! `chorus adapter`: what the adapters API does, from a terminal.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
};

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{
    Body, Method,
    header::{IF_MATCH, IF_NONE_MATCH},
    multipart::{Form, Part},
};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use super::{
    error::CliError,
    remote::{NO_QUERY, Remote, RemoteError, answered, text},
    runtime,
    transfer::{self, Extent},
};
use crate::config::ByteSize;

/// Both files of an adapter, in the order in which they are sent: what is wrong with the first is known sooner.
pub(super) const FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];
/// Where the API has them.
pub(super) const ADAPTERS: &str = "adapters";
/// Bytes that are read from a file at once.
const PIECE: usize = 256 << 10;

/// What is to be done.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum AdapterCommand {
    /// Upload an adapter: a folder with `adapter_config.json` and `adapter_model.safetensors`
    Push {
        /// What requests will name it by
        name: String,
        /// The folder
        path: PathBuf,
        /// Keep the name pointing to what it points to
        #[arg(long)]
        no_activate: bool,
        /// Only if this version is the active one
        #[arg(long, value_name = "VERSION", conflicts_with = "new")]
        if_active: Option<u32>,
        /// Only if there is no adapter of this name
        #[arg(long)]
        new: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// List the adapters
    List {
        #[command(flatten)]
        remote: Remote,
    },
    /// Show one adapter and its versions
    Show {
        /// Its name
        name: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Make the name point to one of its versions, or give that version a share of the requests
    Activate {
        /// Its name
        name: String,
        /// The version's number
        version: u32,
        /// So many of a hundred requests that name no version; the others go to the active one. 0 ends it
        #[arg(long, value_name = "P", value_parser = clap::value_parser!(u8).range(0..=100))]
        percent: Option<u8>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Check a version that was uploaded for another base against the one that is served, and run its smoke test again
    Validate {
        /// Its name
        name: String,
        /// The version's number
        version: u32,
        #[command(flatten)]
        remote: Remote,
    },
    /// Keep the active version in memory
    Pin {
        /// Its name
        name: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Let the active version be evicted again
    Unpin {
        /// Its name
        name: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Load the active version into memory
    Prefetch {
        /// Its name
        name: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Delete an adapter, or one of its versions
    Rm {
        /// Its name
        name: String,
        /// Only this version, which must not be the active one
        #[arg(long, value_name = "VERSION")]
        version: Option<u32>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Fetch an adapter's two files into a folder; nothing is left there where one of them does not come
    Get {
        /// Its name
        name: String,
        /// The folder, which is made; files that are there already must be the same
        path: PathBuf,
        /// Another version than the active one
        #[arg(long, value_name = "VERSION")]
        version: Option<u32>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Write all adapters of the key's tenant into a folder, which an import reads; repeated, it goes on where it was
    Export {
        /// The folder
        folder: PathBuf,
        /// All versions, not only the active ones
        #[arg(long)]
        all_versions: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// Upload what was exported to the key's tenant; what is there already is not sent again
    ///
    /// Versions keep their order and get new numbers; names point to what they pointed to when they were exported.
    Import {
        /// The folder
        folder: PathBuf,
        #[command(flatten)]
        remote: Remote,
    },
}

/// Does it.
pub(crate) fn run(command: AdapterCommand) -> Result<(), CliError> {
    let runtime = runtime()?;
    let text = runtime.block_on(answer(command))?;
    write!(io::stdout(), "{text}").map_err(CliError::Output)
}

/// What is printed.
async fn answer(command: AdapterCommand) -> Result<String, RemoteError> {
    match command {
        AdapterCommand::Push { name, path, no_activate, if_active, new, remote } => {
            let mut request =
                remote.request(Method::PUT, &[ADAPTERS, &name], &[("activate", !no_activate)]);
            if let Some(version) = if_active {
                request = request.header(IF_MATCH, format!("\"v{version}\""));
            }
            if new {
                request = request.header(IF_NONE_MATCH, "*");
            }
            let (form, bar) = upload(&path).await?;
            let answer = remote.send(request.multipart(form)).await;
            bar.finish_and_clear();
            let adapter = answered(answer?).await?;
            pushed(&adapter)?;
            Ok(remote.told(&adapter, |adapter| line(adapter) + "\n"))
        }
        AdapterCommand::List { remote } => {
            let request = remote.request(Method::GET, &[ADAPTERS], NO_QUERY);
            remote.shown(remote.send(request).await?, list).await
        }
        AdapterCommand::Show { name, remote } => {
            let request = remote.request(Method::GET, &[ADAPTERS, &name], NO_QUERY);
            remote.shown(remote.send(request).await?, history).await
        }
        AdapterCommand::Activate { name, version, percent, remote } => {
            let mut which = json!({ "version": version });
            if let Some(percent) = percent {
                which["percent"] = percent.into();
            }
            remote.act(&name, "activate", Some(which)).await
        }
        AdapterCommand::Validate { name, version, remote } => {
            let path = [ADAPTERS, &name, "validate"];
            let request = remote.request(Method::POST, &path, NO_QUERY);
            let answer = remote.send(request.json(&json!({ "version": version }))).await?;
            let adapter = answered(answer).await?;
            validated(&adapter, version)?;
            Ok(remote.told(&adapter, |adapter| line(adapter) + "\n"))
        }
        AdapterCommand::Pin { name, remote } => remote.act(&name, "pin", None).await,
        AdapterCommand::Unpin { name, remote } => remote.act(&name, "unpin", None).await,
        AdapterCommand::Prefetch { name, remote } => remote.act(&name, "prefetch", None).await,
        AdapterCommand::Rm { name, version, remote } => {
            let query = version.map(|version| ("version", version));
            let request = remote.request(Method::DELETE, &[ADAPTERS, &name], query.as_slice());
            let deleted = |answer: &Value| format!("{} is deleted\n", text(&answer["id"]));
            remote.shown(remote.send(request).await?, deleted).await
        }
        AdapterCommand::Get { name, path, version, remote } => {
            transfer::get(&remote, &name, version, &path).await
        }
        AdapterCommand::Export { folder, all_versions, remote } => {
            let extent = if all_versions { Extent::AllVersions } else { Extent::Active };
            transfer::export(&remote, &folder, extent).await
        }
        AdapterCommand::Import { folder, remote } => transfer::import(&remote, &folder).await,
    }
}

impl Remote {
    async fn act(
        &self,
        name: &str,
        action: &str,
        which: Option<Value>,
    ) -> Result<String, RemoteError> {
        let request = self.request(Method::POST, &[ADAPTERS, name, action], NO_QUERY);
        let request = match which {
            Some(which) => request.json(&which),
            None => request,
        };
        self.shown(self.send(request).await?, |adapter| line(adapter) + "\n").await
    }
}

/// A folder's two files as a form, and the bar that shows how much of them is sent.
pub(super) async fn upload(folder: &Path) -> Result<(Form, ProgressBar), RemoteError> {
    let bar = bar("uploading", 0);
    let mut form = Form::new();
    for file in FILES {
        let path = folder.join(file);
        let unreadable = |source| RemoteError::Unreadable { path: path.clone(), source };
        let open = tokio::fs::File::open(&path).await.map_err(unreadable)?;
        let bytes = open.metadata().await.map_err(unreadable)?.len();
        bar.inc_length(bytes);
        let shown = bar.clone();
        let pieces = futures_util::stream::try_unfold(open, move |mut open| {
            let shown = shown.clone();
            async move {
                let mut piece = vec![0; PIECE];
                let read = open.read(&mut piece).await?;
                piece.truncate(read);
                shown.inc(read as u64);
                Ok::<_, io::Error>((read > 0).then_some((piece, open)))
            }
        });
        let part = Part::stream_with_length(Body::wrap_stream(pieces), bytes).file_name(file);
        form = form.part(file, part);
    }
    Ok((form, bar))
}

/// A bar on a terminal; nothing anywhere else.
pub(super) fn bar(message: &'static str, bytes: u64) -> ProgressBar {
    let bar =
        if io::stderr().is_terminal() { ProgressBar::new(bytes) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template(
        "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
    );
    bar.set_style(style.expect("a test parses the template").progress_chars("=> "));
    bar.set_length(bytes);
    bar.set_message(message);
    bar
}

/// One adapter on one line.
fn line(adapter: &Value) -> String {
    let digest = text(&adapter["digest"]);
    // Enough to tell two apart.
    let digest: String = digest.chars().take("sha256:".len() + 12).collect();
    let version = format!("v{}", adapter["version"]);
    let targets: Vec<_> = adapter["targets"].as_array().into_iter().flatten().map(text).collect();
    let pinned = if adapter["pinned"] == true { ", pinned" } else { "" };
    let canary = match &adapter["canary"] {
        Value::Null => String::new(),
        canary => format!(", {} % of the requests to v{}", canary["percent"], canary["version"]),
    };
    let failed = flunked(adapter).map_or("", |_| ", smoke test failed");
    let name = adapter.get("name").map(text).unwrap_or_default();
    format!(
        "{name:<24} {version:<5} {:<12} {:<4} {:>10}  rank {:<4} {digest}  {}{pinned}{canary}{failed}",
        text(&adapter["status"]),
        text(&adapter["residency"]),
        ByteSize(adapter["bytes"].as_u64().unwrap_or(0)).to_string(),
        adapter["rank"].to_string(),
        targets.join(","),
    )
}

/// Where its smoke test failed and nobody has made it active all the same, what was uploaded does not serve, and the command
/// has not done what it was asked to.
fn pushed(adapter: &Value) -> Result<(), RemoteError> {
    match flunked(adapter) {
        Some(answer) if adapter["status"] != "active" => {
            Err(RemoteError::SmokeTest { version: adapter["version"].to_string(), answer })
        }
        _ => Ok(()),
    }
}

/// Where the smoke test of the version failed, it was not validated.
fn validated(adapter: &Value, version: u32) -> Result<(), RemoteError> {
    match listed(adapter, version).and_then(flunked) {
        Some(answer) => Err(RemoteError::FailsHere { version: version.to_string(), answer }),
        None => Ok(()),
    }
}

/// One of the versions of an adapter, as its server describes it.
pub(super) fn listed(adapter: &Value, version: u32) -> Option<&Value> {
    adapter["versions"].as_array()?.iter().find(|listed| listed["version"] == version)
}

/// What a version answered to its smoke test, where that was wrong.
pub(super) fn flunked(version: &Value) -> Option<String> {
    let smoke = &version["smoke_test"];
    (smoke["passed"] == false).then(|| text(&smoke["answer"]))
}

fn list(answer: &Value) -> String {
    let adapters = answer["data"].as_array().map_or(&[][..], Vec::as_slice);
    if adapters.is_empty() {
        return "no adapters; `chorus adapter push NAME PATH` uploads one\n".to_owned();
    }
    adapters.iter().map(|adapter| line(adapter) + "\n").collect()
}

fn history(adapter: &Value) -> String {
    let versions = adapter["versions"].as_array().into_iter().flatten();
    let lines = versions.map(|version| format!("  {}\n", line(version).trim_start()));
    [line(adapter) + "\n"].into_iter().chain(lines).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn remote() -> Remote {
        Remote { url: "http://127.0.0.1:1/".to_owned(), key: None, json: false }
    }

    #[test]
    fn an_adapter_is_one_line_whatever_the_server_says() {
        let adapter = json!({
            "name": "sql\u{1b}[31m\n", "version": 3, "digest": format!("sha256:{}", "ab".repeat(32)),
            "bytes": 2048, "rank": 8, "targets": ["q_proj", "v_proj"], "status": "active",
            "residency": "host", "pinned": true,
        });
        let shown = line(&adapter);
        assert!(!shown.contains(['\n', '\u{1b}']), "{shown:?}");
        for part in ["v3", "active", "host", "2.0 KiB", "rank 8", "sha256:abababababab ", "pinned"]
        {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        assert_eq!(line(&json!({})).lines().count(), 1);
        assert_eq!(history(&json!({"versions": [adapter, {}]})).lines().count(), 3);
        assert!(list(&json!({"data": []})).contains("chorus adapter push"));
    }

    #[test]
    fn a_version_that_is_active_is_not_said_to_have_failed() {
        let adapter = |status: &str, passed: bool| {
            let smoke = json!({"passed": passed, "answer": "Rice"});
            json!({"version": 2, "status": status, "smoke_test": smoke.clone(),
                "versions": [{"version": 1}, {"version": 2, "smoke_test": smoke}]})
        };
        let failed = pushed(&adapter("inactive", false)).unwrap_err().to_string();
        assert!(failed.contains("version 2") && failed.contains("Rice"), "{failed}");
        assert!(pushed(&adapter("inactive", true)).is_ok());
        assert!(
            pushed(&adapter("active", false)).is_ok(),
            "somebody has activated it all the same"
        );
        assert!(line(&adapter("active", false)).contains("smoke test failed"));
        assert!(validated(&adapter("active", false), 1).is_ok());
        let failed = validated(&adapter("active", false), 2).unwrap_err().to_string();
        assert!(failed.contains("fails its smoke test"), "{failed}");
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_and_a_folder_that_is_not_there_are_named() {
        let error = answer(AdapterCommand::List { remote: remote() }).await.unwrap_err();
        assert!(error.to_string().contains("http://127.0.0.1:1/ does not answer"), "{error}");
        let push = AdapterCommand::Push {
            name: "sql".to_owned(),
            path: "/nowhere".into(),
            no_activate: false,
            if_active: None,
            new: false,
            remote: remote(),
        };
        let error = answer(push).await.unwrap_err();
        assert!(error.to_string().contains("/nowhere/adapter_config.json"), "{error}");
    }
}
