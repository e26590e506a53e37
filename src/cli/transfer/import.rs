//! `chorus adapter import`

use std::{
    io::{self, Write as _},
    path::Path,
    time::Duration,
};

use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};

use super::{
    super::{
        adapter::{ADAPTERS, flunked, listed, upload},
        error::CliError,
        progress,
        remote::{NO_QUERY, Remote, RemoteError, answered, printable, text},
    },
    export::{Listed, Shown, Standing, served, show},
    manifest::{Exported, Manifest, Version, place},
};
use crate::{adapter::AdapterName, catalog::Progress};

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
    /// Why the name does not point to what it is to point to, although that can be used.
    stuck: Option<String>,
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
    /// It was there already, under this number, and cannot be used on the base there.
    Unusable(u32, String),
    /// It was not sent, or the server does not take it.
    Refused(String),
}

impl Imported {
    /// Before anything of it is sent.
    fn none_of(exported: &Exported) -> Self {
        let name = exported.name.to_string();
        Self { name, versions: Vec::new(), active: None, withheld: None, stuck: None }
    }

    /// The name is to point to this version, unless its smoke test fails. What somebody has activated all the same, which
    /// the name points to there already (`at`), stays active.
    fn point_to(&mut self, moved: &Moved, at: Option<u32>) {
        let number = moved.outcome.usable();
        if moved.flunked.is_some() && number != at {
            self.withheld = number;
        } else {
            self.active = number;
        }
    }
}

impl Outcome {
    /// Its number there.
    fn number(&self) -> Option<u32> {
        match self {
            Self::Uploaded(number) | Self::Present(number) | Self::Unusable(number, _) => {
                Some(*number)
            }
            Self::Refused(_) => None,
        }
    }

    /// The same, where requests can be answered by it.
    fn usable(&self) -> Option<u32> {
        self.why().is_none().then(|| self.number()).flatten()
    }

    /// Why none can.
    fn why(&self) -> Option<&str> {
        match self {
            Self::Uploaded(_) | Self::Present(_) => None,
            Self::Unusable(_, why) | Self::Refused(why) => Some(why),
        }
    }
}

/// Uploads an export to the key's tenant. What fails is told, and the rest goes on.
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
        imported.push(adapter(remote, folder, exported, &*notes).await);
    }
    drop(notes);
    let told = if remote.json { format!("{}\n", as_json(&imported)) } else { as_text(&imported) };
    let Some(what) = lacking(&imported) else { return Ok(told) };
    drop(io::stdout().write_all(told.as_bytes()));
    Err(RemoteError::Incomplete { what })
}

/// What is not as it was exported, in words; `None` where all is.
fn lacking(imported: &[Imported]) -> Option<String> {
    let all: Vec<_> = imported.iter().flat_map(|adapter| &adapter.versions).collect();
    let counted = |is: fn(&Outcome) -> bool| all.iter().filter(|moved| is(&moved.outcome)).count();
    let refused = counted(|outcome| matches!(outcome, Outcome::Refused(_)));
    let unusable = counted(|outcome| matches!(outcome, Outcome::Unusable(..)));
    let withheld = imported.iter().filter(|adapter| adapter.withheld.is_some()).count();
    let stuck = imported.iter().filter(|adapter| adapter.stuck.is_some()).count();
    let of = all.len();
    let part = |count: usize, one: &str, more: &str| match count {
        0 => None,
        1 => Some(format!("1 {one}")),
        count => Some(format!("{count} {more}")),
    };
    let parts = [
        part(
            refused,
            &format!("of {of} versions is not there"),
            &format!("of {of} versions are not there"),
        ),
        part(unusable, "is there and cannot be used", "are there and cannot be used"),
        part(
            withheld,
            "that was to be active fails its smoke test and is not",
            "that were to be active fail their smoke tests and are not",
        ),
        part(stuck, "name does not point to its version", "names do not point to their versions"),
    ];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// Sends what the server lacks of an adapter, and makes the name point to what it pointed to.
async fn adapter(
    remote: &Remote,
    folder: &Path,
    exported: &Exported,
    notes: &dyn Progress,
) -> Imported {
    let name = &exported.name;
    let mut imported = Imported::none_of(exported);
    let there = match show(remote, name).await {
        Ok(there) => there,
        // The name means something else there, or the server does not say.
        Err(error) => {
            let why = CliError::from(error).one_line();
            notes.note(&format!("{name}: {why}"));
            let refused = |version: &Version| Moved {
                from: version.number,
                outcome: Outcome::Refused(why.clone()),
                flunked: None,
            };
            imported.versions = exported.versions.iter().map(refused).collect();
            return imported;
        }
    };
    let at = there.as_ref().and_then(|there| there.active);
    for version in &exported.versions {
        let moved = carry(remote, folder, (exported, version), there.as_ref(), notes).await;
        if exported.active == Some(version.number) {
            imported.point_to(&moved, at);
        }
        imported.versions.push(moved);
    }
    if let Some(active) = imported.active
        && at != Some(active)
        && let Err(error) = activate(remote, name, active).await
    {
        let why = CliError::from(error).one_line();
        notes.note(&format!("{name} does not point to v{active}: {why}"));
        (imported.active, imported.stuck) = (None, Some(why));
    }
    if exported.pinned && imported.active.is_some() {
        let path = [ADAPTERS, name.as_str(), "pin"];
        let pinned = remote.send(remote.request(Method::POST, &path, NO_QUERY)).await;
        // It is a matter of the server's memory, and of another scope.
        if let Err(error) = pinned {
            let why = CliError::from(error).one_line();
            notes.note(&format!("{name} was pinned and is not now: {why}"));
        }
    }
    imported
}

async fn activate(remote: &Remote, name: &AdapterName, version: u32) -> Result<(), RemoteError> {
    let request = act(remote, name, "activate", version);
    remote.send(request).await.map(drop)
}

fn act(remote: &Remote, name: &AdapterName, action: &str, version: u32) -> RequestBuilder {
    let request = remote.request(Method::POST, &[ADAPTERS, name.as_str(), action], NO_QUERY);
    request.json(&json!({ "version": version }))
}

/// Makes sure that the server has a version, and that it was checked against the base there.
async fn carry(
    remote: &Remote,
    folder: &Path,
    (exported, version): (&Exported, &Version),
    there: Option<&Shown>,
    notes: &dyn Progress,
) -> Moved {
    let (name, from) = (&exported.name, version.number);
    let why = |error: RemoteError| {
        let why = CliError::from(error).one_line();
        notes.note(&format!("{name}@v{from}: {why}"));
        why
    };
    let mut known = there.into_iter().flat_map(|there| &there.versions);
    let (outcome, flunked) = match known.find(|known| known.digest == version.digest) {
        Some(Listed { number, standing: Standing::Usable { flunked }, .. }) => {
            (Outcome::Present(*number), flunked.clone())
        }
        Some(Listed { number, standing: Standing::OtherBase, .. }) => {
            match validate(remote, name, *number).await {
                Ok(flunked) => (Outcome::Present(*number), flunked),
                Err(error) => (Outcome::Unusable(*number, why(error)), None),
            }
        }
        None => match put(remote, folder, exported, version).await {
            Ok((number, flunked)) => (Outcome::Uploaded(number), flunked),
            Err(error) => (Outcome::Refused(why(error)), None),
        },
    };
    if let Some(answer) = &flunked {
        notes.note(&format!("{name}@v{from}: its smoke test fails there; it answers {answer:?}"));
    }
    Moved { from, outcome, flunked }
}

/// Has a version checked against the base there. Returns what it answers to its smoke test where that is wrong.
async fn validate(
    remote: &Remote,
    name: &AdapterName,
    version: u32,
) -> Result<Option<String>, RemoteError> {
    let send = async || remote.send(act(remote, name, "validate", version)).await;
    let shown = answered(patiently(send).await?).await?;
    Ok(listed(&shown, version).and_then(flunked))
}

/// Asks a server that is busy again.
async fn patiently(
    send: impl AsyncFn() -> Result<Response, RemoteError>,
) -> Result<Response, RemoteError> {
    for _ in 1..ATTEMPTS {
        match send().await {
            Err(RemoteError::Refused { status: 503, .. }) => tokio::time::sleep(PAUSE).await,
            sent => return sent,
        }
    }
    send().await
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
    let send = async || {
        let path = [ADAPTERS, exported.name.as_str()];
        let request = remote.request(Method::PUT, &path, &[("activate", false)]);
        let (form, bar) = upload(&place).await?;
        let sent = remote.send(request.multipart(form)).await;
        bar.finish_and_clear();
        sent
    };
    let answer = answered(patiently(send).await?).await?;
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
        let status = match &moved.outcome {
            Outcome::Uploaded(_) => "uploaded",
            Outcome::Present(_) => "present",
            Outcome::Unusable(..) => "unusable",
            Outcome::Refused(_) => "refused",
        };
        let flunked = moved.flunked.as_ref();
        let flunked = flunked.map(|answer| format!("its smoke test fails: it answers {answer:?}"));
        let why = moved.outcome.why().or(flunked.as_deref());
        json!({"from": moved.from, "to": moved.outcome.number(), "status": status, "why": why})
    };
    let adapter = |imported: &Imported| {
        let versions: Vec<_> = imported.versions.iter().map(version).collect();
        json!({
            "name": imported.name, "active": imported.active, "why": imported.stuck,
            "versions": versions,
        })
    };
    let adapters: Vec<_> = imported.iter().map(adapter).collect();
    json!({"object": "adapter.import", "adapters": adapters})
}

/// A line for each version, because its number may be another on this server.
fn as_text(imported: &[Imported]) -> String {
    let lines = imported.iter().flat_map(|adapter| {
        let versions = adapter.versions.iter().map(|Moved { from, outcome, flunked }| {
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
                Outcome::Unusable(to, why) => {
                    format!("is v{to} there already and cannot be used: {why}")
                }
                Outcome::Refused(why) => format!("is not there: {why}"),
            };
            format!("{:<24} v{from:<4} {what}{active}{flunked}\n", adapter.name)
        });
        let stuck = adapter.stuck.iter().map(|why| {
            format!("{:<24}       does not point to what was exported: {why}\n", adapter.name)
        });
        versions.chain(stuck).collect::<Vec<_>>()
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
        Imported { name: "sql".to_owned(), versions, active: None, withheld: None, stuck: None }
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
        assert!(lines[2].ends_with("v3    is not there: no"), "{text}");
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

    #[test]
    fn what_is_there_and_cannot_be_used_is_not_active() {
        let unusable = || moved(1, Outcome::Unusable(4, "422: no such module".to_owned()));
        let mut imported = sql(vec![unusable()]);
        imported.point_to(&unusable(), Some(4));
        assert_eq!((imported.active, imported.withheld), (None, None));
        let text = as_text(std::slice::from_ref(&imported));
        assert!(
            text.ends_with("is v4 there already and cannot be used: 422: no such module\n"),
            "{text}"
        );
        let what = lacking(std::slice::from_ref(&imported)).unwrap();
        assert_eq!(what, "1 is there and cannot be used");
        let json = &as_json(&[imported])["adapters"][0]["versions"][0];
        assert_eq!((&json["to"], &json["status"]), (&json!(4), &json!("unusable")));
        assert_eq!(json["why"], "422: no such module");
    }

    #[test]
    fn what_is_missing_is_told_and_nothing_else() {
        let refused = || moved(3, Outcome::Refused("no".to_owned()));
        let present = || moved(1, Outcome::Present(4));
        assert!(lacking(&[]).is_none() && lacking(&[sql(vec![present()])]).is_none());
        let one = lacking(&[sql(vec![present(), present(), refused()])]).unwrap();
        assert_eq!(one, "1 of 3 versions is not there");
        let withheld = Imported { withheld: Some(4), ..sql(vec![present()]) };
        let stuck = || Imported { stuck: Some("409".to_owned()), ..sql(vec![present()]) };
        let what = lacking(&[sql(vec![refused(), refused()]), withheld, stuck(), stuck()]).unwrap();
        assert_eq!(
            what,
            "2 of 5 versions are not there, 1 that was to be active fails its smoke test and is not, \
             2 names do not point to their versions"
        );
        let text = as_text(&[stuck()]);
        assert!(text.ends_with("does not point to what was exported: 409\n"), "{text}");
    }
}
