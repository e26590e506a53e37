//! `chorus adapter import`

use std::{
    io::{self, Write as _},
    path::Path,
    time::Duration,
};

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    super::{
        adapter::{ADAPTERS, upload},
        progress,
        remote::{NO_QUERY, Remote, RemoteError, printable, text},
    },
    export::{Listed, Shown, flunked, served, show},
    manifest::{Exported, Manifest, Version, place},
};
use crate::catalog::Progress;

/// A server that is busy is asked again so often, and after so long.
const ATTEMPTS: usize = 5;
const PAUSE: Duration = Duration::from_secs(2);

/// One adapter on the server.
struct Imported {
    name: String,
    versions: Vec<Moved>,
    /// The version that the name points to there, where one was exported as that.
    active: Option<u32>,
    /// The version that it would point to, but for its smoke test, which fails there.
    withheld: Option<u32>,
}

/// One version on its way.
struct Moved {
    /// Its number in the export.
    from: u32,
    outcome: Outcome,
    /// What it answers there to its smoke test, where that is wrong.
    flunked: Option<String>,
}

enum Outcome {
    /// It is there now, under this number.
    Uploaded(u32),
    /// It was there already, under this number.
    Present(u32),
    /// The server does not take it.
    Refused(String),
}

impl Imported {
    /// Before anything of it is sent.
    fn none_of(exported: &Exported) -> Self {
        let name = exported.name.to_string();
        Self { name, versions: Vec::new(), active: None, withheld: None }
    }

    /// The name is to point to this version, unless its smoke test fails. What somebody has activated all the same, which
    /// the name points to there already (`at`), stays active.
    fn point_to(&mut self, moved: &Moved, at: Option<u32>) {
        let number = moved.outcome.number();
        if moved.flunked.is_some() && number != at {
            self.withheld = number;
        } else {
            self.active = number;
        }
    }
}

impl Outcome {
    fn number(&self) -> Option<u32> {
        match self {
            Self::Uploaded(number) | Self::Present(number) => Some(*number),
            Self::Refused(_) => None,
        }
    }
}

/// Uploads an export to the key's tenant.
pub(in crate::cli) async fn import(remote: &Remote, folder: &Path) -> Result<String, RemoteError> {
    let Some(manifest) = Manifest::read(folder)? else {
        let what = "no export: it has no manifest.json".to_owned();
        return Err(RemoteError::Unexpected { path: folder.to_owned(), what });
    };
    let notes = progress::on_stderr();
    let (base, _) = served(remote).await?;
    if base.digest != manifest.base.digest {
        notes.note(&format!(
            "the export is from the base {}, and {} is another: each adapter is checked against it",
            printable(&manifest.base.id),
            base.id
        ));
    }
    let mut imported = Vec::new();
    for exported in &manifest.adapters {
        imported.push(adapter(remote, folder, exported, &*notes).await?);
    }
    drop(notes);
    let told = if remote.json { format!("{}\n", as_json(&imported)) } else { as_text(&imported) };
    let versions = || imported.iter().flat_map(|adapter| &adapter.versions);
    let refused = versions().filter(|moved| moved.outcome.number().is_none()).count();
    let withheld = imported.iter().filter(|adapter| adapter.withheld.is_some()).count();
    if refused == 0 && withheld == 0 {
        return Ok(told);
    }
    drop(io::stdout().write_all(told.as_bytes()));
    Err(RemoteError::Incomplete { refused, versions: versions().count(), withheld })
}

/// Sends what the server lacks of an adapter, and makes the name point to what it pointed to.
async fn adapter(
    remote: &Remote,
    folder: &Path,
    exported: &Exported,
    notes: &dyn Progress,
) -> Result<Imported, RemoteError> {
    let name = &exported.name;
    let there = match show(remote, name).await {
        // The name means something else there.
        Err(RemoteError::Refused { status: 400, message }) => {
            notes.note(&format!("{name}: {message}"));
            let refused = |version: &Version| Moved {
                from: version.number,
                outcome: Outcome::Refused(message.clone()),
                flunked: None,
            };
            let versions = exported.versions.iter().map(refused).collect();
            return Ok(Imported { versions, ..Imported::none_of(exported) });
        }
        there => there?,
    };
    let at = there.as_ref().and_then(|there| there.active);
    let mut imported = Imported::none_of(exported);
    for version in &exported.versions {
        let moved = carry(remote, folder, (exported, version), there.as_ref(), notes).await?;
        if exported.active == Some(version.number) {
            imported.point_to(&moved, at);
        }
        imported.versions.push(moved);
    }
    if let Some(active) = imported.active
        && at != Some(active)
    {
        let path = [ADAPTERS, name.as_str(), "activate"];
        let request = remote.request(Method::POST, &path, NO_QUERY);
        remote.send(request.json(&json!({ "version": active }))).await?;
    }
    if exported.pinned && imported.active.is_some() {
        let path = [ADAPTERS, name.as_str(), "pin"];
        let pinned = remote.send(remote.request(Method::POST, &path, NO_QUERY)).await;
        // It is a matter of the server's memory, and of another scope.
        if let Err(error @ RemoteError::Refused { .. }) = pinned {
            notes.note(&format!("{name} was pinned and is not now: {error}"));
        }
    }
    Ok(imported)
}

/// Sends a version, unless the server has it.
async fn carry(
    remote: &Remote,
    folder: &Path,
    (exported, version): (&Exported, &Version),
    there: Option<&Shown>,
    notes: &dyn Progress,
) -> Result<Moved, RemoteError> {
    let (name, from) = (&exported.name, version.number);
    let mut known = there.into_iter().flat_map(|there| &there.versions);
    let (outcome, flunked) = match known.find(|known| known.digest == version.digest) {
        Some(Listed { number, flunked, .. }) => (Outcome::Present(*number), flunked.clone()),
        None => match put(remote, folder, exported, version).await {
            Err(RemoteError::Refused { status: status @ (409 | 413 | 422 | 429), message }) => {
                notes.note(&format!("{name}@v{from}: {status}: {message}"));
                (Outcome::Refused(message), None)
            }
            put => {
                let (number, flunked) = put?;
                (Outcome::Uploaded(number), flunked)
            }
        },
    };
    if let Some(answer) = &flunked {
        notes.note(&format!("{name}@v{from}: its smoke test fails there; it answers {answer:?}"));
    }
    Ok(Moved { from, outcome, flunked })
}

/// Uploads a version, once its files are seen to be what was exported. Returns its number there, and what it answers to
/// its smoke test where that is wrong.
async fn put(
    remote: &Remote,
    folder: &Path,
    exported: &Exported,
    version: &Version,
) -> Result<(u32, Option<String>), RemoteError> {
    let place = place(folder, &exported.name, version.number);
    version.check(&place)?;
    let mut attempts = 1;
    let response = loop {
        let path = [ADAPTERS, exported.name.as_str()];
        let request = remote.request(Method::PUT, &path, &[("activate", false)]);
        let (form, bar) = upload(&place).await?;
        let sent = remote.send(request.multipart(form)).await;
        bar.finish_and_clear();
        match sent {
            Err(RemoteError::Refused { status: 503, .. }) if attempts < ATTEMPTS => {
                attempts += 1;
                tokio::time::sleep(PAUSE).await;
            }
            sent => break sent?,
        }
    };
    let answer: Value =
        response.json().await.map_err(|error| RemoteError::Answer(error.to_string()))?;
    if text(&answer["digest"]) != version.digest {
        let what = "changed while it was sent: import it again".to_owned();
        return Err(RemoteError::Unexpected { path: place, what });
    }
    let number = answer["version"].as_u64().and_then(|number| u32::try_from(number).ok());
    let number = number.ok_or_else(|| RemoteError::Answer("it has no version".to_owned()))?;
    Ok((number, flunked(&answer)))
}

fn as_json(imported: &[Imported]) -> Value {
    let version = |moved: &Moved| {
        let (status, why) = match &moved.outcome {
            Outcome::Uploaded(_) => ("uploaded", None),
            Outcome::Present(_) => ("present", None),
            Outcome::Refused(why) => ("refused", Some(why)),
        };
        let flunked = moved.flunked.as_ref();
        let flunked = flunked.map(|answer| format!("its smoke test fails: it answers {answer:?}"));
        let why = why.or(flunked.as_ref());
        json!({"from": moved.from, "to": moved.outcome.number(), "status": status, "why": why})
    };
    let adapter = |imported: &Imported| {
        let versions: Vec<_> = imported.versions.iter().map(version).collect();
        json!({"name": imported.name, "active": imported.active, "versions": versions})
    };
    let adapters: Vec<_> = imported.iter().map(adapter).collect();
    json!({"object": "adapter.import", "adapters": adapters})
}

/// A line for each version, because its number may be another on this server.
fn as_text(imported: &[Imported]) -> String {
    let lines = imported.iter().flat_map(|adapter| {
        adapter.versions.iter().map(|Moved { from, outcome, flunked }| {
            let is_at = |at: Option<u32>| at.is_some() && outcome.number() == at;
            let active = if is_at(adapter.active) { ", active" } else { "" };
            let flunked = match flunked {
                Some(_) if is_at(adapter.withheld) => ", not active: its smoke test fails",
                Some(_) => ", its smoke test fails",
                None => "",
            };
            let what = match outcome {
                Outcome::Uploaded(to) => format!("is v{to} there, uploaded"),
                Outcome::Present(to) => format!("is v{to} there already"),
                Outcome::Refused(_) => "is not there".to_owned(),
            };
            format!("{:<24} v{from:<4} {what}{active}{flunked}\n", adapter.name)
        })
    });
    let lines: String = lines.collect();
    if lines.is_empty() { "the export has no adapters\n".to_owned() } else { lines }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(from: u32, outcome: Outcome) -> Moved {
        Moved { from, outcome, flunked: None }
    }

    fn sql(versions: Vec<Moved>) -> Imported {
        Imported { name: "sql".to_owned(), versions, active: None, withheld: None }
    }

    #[test]
    fn numbers_of_both_servers_are_told() {
        let versions = vec![
            moved(1, Outcome::Present(4)),
            moved(2, Outcome::Uploaded(5)),
            moved(3, Outcome::Refused("no".to_owned())),
        ];
        let imported = [Imported { active: Some(5), ..sql(versions) }];
        let text = as_text(&imported);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].ends_with("v1    is v4 there already"), "{text}");
        assert!(lines[1].ends_with("v2    is v5 there, uploaded, active"), "{text}");
        assert!(lines[2].ends_with("v3    is not there"), "{text}");
        let json = as_json(&imported);
        assert_eq!(json["adapters"][0]["versions"][1]["to"], 5);
        assert_eq!(json["adapters"][0]["versions"][2]["status"], "refused");
    }

    #[test]
    fn what_fails_its_smoke_test_is_not_activated() {
        let fails = || Moved { flunked: Some("Rice".to_owned()), ..moved(2, Outcome::Uploaded(5)) };
        let mut imported = sql(vec![moved(1, Outcome::Present(4)), fails()]);
        imported.point_to(&fails(), Some(4));
        assert_eq!((imported.active, imported.withheld), (None, Some(5)));
        let text = as_text(std::slice::from_ref(&imported));
        assert!(
            text.ends_with("is v5 there, uploaded, not active: its smoke test fails\n"),
            "{text}"
        );
        let json = as_json(&[imported]);
        let [first, second] = [0, 1].map(|at| &json["adapters"][0]["versions"][at]);
        assert_eq!((&first["why"], &second["status"]), (&Value::Null, &json!("uploaded")));
        assert_eq!(second["why"], "its smoke test fails: it answers \"Rice\"");
        let mut kept = sql(Vec::new());
        kept.point_to(&fails(), Some(5));
        assert_eq!((kept.active, kept.withheld), (Some(5), None), "somebody has activated it");
        let mut fine = sql(Vec::new());
        fine.point_to(&moved(2, Outcome::Uploaded(5)), None);
        assert_eq!((fine.active, fine.withheld), (Some(5), None));
    }

    #[test]
    fn a_smoke_test_is_read_as_the_server_tells_it() {
        let version = |smoke: Value| json!({"smoke_test": smoke});
        let failed = json!({"passed": false, "answer": "Rice"});
        assert_eq!(flunked(&version(failed)), Some("Rice".to_owned()));
        assert_eq!(flunked(&version(json!({"passed": true, "answer": "Ahoy"}))), None);
        assert_eq!(flunked(&version(Value::Null)), None);
        assert_eq!(flunked(&json!({})), None);
    }
}
