//! `chorus adapter export`

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use futures_util::StreamExt as _;
use reqwest::{Method, header::ETAG};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{
    super::{
        adapter::{ADAPTERS, FILES, bar, flunked},
        progress,
        remote::{NO_QUERY, Remote, RemoteError, answered, printable, text},
    },
    manifest::{self, Base, Content, Exported, FORMAT, Manifest, Version, contents, place},
};
use crate::{adapter::AdapterName, config::ByteSize};

/// What of each adapter is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Extent {
    /// The version that its name points to.
    Active,
    /// All of them.
    AllVersions,
}

/// What was done.
#[derive(Default)]
struct Done {
    versions: usize,
    fetched: usize,
    bytes: u64,
}

/// An adapter as its server shows it.
pub(super) struct Shown {
    /// What the name points to.
    pub(super) active: Option<u32>,
    pinned: bool,
    pub(super) versions: Vec<Listed>,
}

/// One of its versions.
pub(super) struct Listed {
    pub(super) number: u32,
    pub(super) digest: String,
    /// In unix seconds.
    created: u64,
    pub(super) standing: Standing,
}

/// Whether requests may have a version.
pub(super) enum Standing {
    /// It was checked against the base that is served.
    Usable {
        /// What it answered to its smoke test, where that was wrong.
        flunked: Option<String>,
    },
    /// It was checked against another.
    OtherBase,
}

/// Writes all adapters that the key's tenant has into a folder.
pub(in crate::cli) async fn export(
    remote: &Remote,
    folder: &Path,
    extent: Extent,
) -> Result<String, RemoteError> {
    let (base, owner) = served(remote).await?;
    let list = remote.json(&[ADAPTERS]).await?;
    // Servers of before say it of adapters alone.
    let tenant = list["tenant"].as_str().map(printable).or(owner);
    let before = Manifest::read(folder)?;
    if let Some(before) = &before {
        let may = may_replace(before, tenant.as_deref());
        may.map_err(|what| RemoteError::Unexpected { path: folder.to_owned(), what })?;
    }
    let notes = progress::on_stderr();
    let (mut adapters, mut done) = (Vec::new(), Done::default());
    for listed in list["data"].as_array().into_iter().flatten() {
        let name = AdapterName::parse(listed["name"].as_str().unwrap_or(""));
        let name = name.map_err(|bad| RemoteError::Answer(format!("a name in it: {bad}")))?;
        let Some(shown) = show(remote, &name).await? else { continue };
        if extent == Extent::Active && shown.active.is_none() {
            notes.note(&format!("{name} has no active version; --all-versions exports it"));
        }
        let wanted = |version: u32| extent == Extent::AllVersions || shown.active == Some(version);
        let mut versions = Vec::new();
        for Listed { number: version, digest, created, .. } in shown.versions {
            if !wanted(version) {
                continue;
            }
            let place = place(folder, &name, version);
            match fetch(remote, (&name, version), &digest, &place).await {
                Ok((contents, is_new)) => {
                    done.versions += 1;
                    done.fetched += usize::from(is_new);
                    done.bytes += contents.iter().map(|content| content.bytes).sum::<u64>();
                    versions.push(Version::new(version, created, &contents));
                }
                Err(RemoteError::Refused { status: 404, .. }) => {
                    notes.note(&format!("{name}@v{version} was deleted meanwhile"));
                }
                Err(error) => return Err(error),
            }
        }
        if !versions.is_empty() {
            let (active, pinned) = (shown.active, shown.pinned);
            adapters.push(Exported { name, active, pinned, versions });
        }
    }
    drop(notes);
    let exported = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let chorus = env!("CARGO_PKG_VERSION").to_owned();
    fs::create_dir_all(folder)
        .map_err(|source| RemoteError::Unwritable { path: folder.to_owned(), source })?;
    let count = adapters.len();
    let lost = before.map_or(0, |before| before.adapters.len());
    if count == 0 && lost > 0 {
        let on_stderr = progress::on_stderr();
        on_stderr.note(&format!(
            "the tenant has no adapters any more: the manifest, which had {lost}, is replaced by one without any; their files \
             stay in the folder"
        ));
    }
    Manifest { format: FORMAT, chorus, exported, tenant, base, adapters }.write(folder)?;
    Ok(told(remote, folder, count, &done))
}

/// Whether an export of this tenant may take the place of what a folder has; else what the folder is.
fn may_replace(before: &Manifest, tenant: Option<&str>) -> Result<(), String> {
    match (&before.tenant, tenant) {
        (Some(before), Some(tenant)) if before == tenant => Ok(()),
        // It had none, as older versions wrote it: nothing is lost.
        (None, _) if before.adapters.is_empty() => Ok(()),
        (Some(before), Some(tenant)) => {
            Err(format!("an export of the tenant {before}, and this is {tenant}: choose another"))
        }
        (None, _) => Err("an export that does not say of which tenant: choose another".to_owned()),
        (Some(before), None) => Err(format!(
            "an export of the tenant {before}, and this server does not say whose key it is: choose another"
        )),
    }
}

fn told(remote: &Remote, folder: &Path, adapters: usize, done: &Done) -> String {
    let Done { versions, fetched, bytes } = *done;
    let folder = folder.display();
    if remote.json {
        let told = json!({
            "object": "adapter.export", "folder": folder.to_string(), "adapters": adapters,
            "versions": versions, "fetched": fetched, "bytes": bytes,
        });
        return format!("{told}\n");
    }
    let there = match versions - fetched {
        0 => String::new(),
        there => format!(" ({there} were there already)"),
    };
    let bytes = ByteSize(bytes);
    format!("{adapters} adapters, {versions} versions{there}, {bytes} in {folder}\n")
}

/// The base that is served, and what the tenant is called, where it has an active adapter.
pub(super) async fn served(remote: &Remote) -> Result<(Base, Option<String>), RemoteError> {
    let models = remote.json(&["models"]).await?;
    let mut models = models["data"].as_array().into_iter().flatten();
    let base = models.next().ok_or_else(|| RemoteError::Answer("it has no base".to_owned()))?;
    let base = Base { id: text(&base["id"]), digest: text(&base["root"]) };
    Ok((base, models.next().map(|adapter| text(&adapter["owned_by"]))))
}

/// One adapter; `None` where there is none of this name.
pub(super) async fn show(
    remote: &Remote,
    name: &AdapterName,
) -> Result<Option<Shown>, RemoteError> {
    let request = remote.request(Method::GET, &[ADAPTERS, name.as_str()], NO_QUERY);
    let response = match remote.send(request).await {
        Err(RemoteError::Refused { status: 404, .. }) => return Ok(None),
        sent => sent?,
    };
    // Only what a name points to has a tag.
    let tag = response.headers().get(ETAG).and_then(|tag| tag.to_str().ok());
    let active = tag.and_then(|tag| tag.strip_prefix("\"v")?.strip_suffix('"')?.parse().ok());
    let shown = answered(response).await?;
    let versions = shown["versions"].as_array().into_iter().flatten().map(|version| {
        let number = version["version"].as_u64().and_then(|number| u32::try_from(number).ok())?;
        let (digest, created) = (text(&version["digest"]), version["created"].as_u64());
        let standing = match version["status"].as_str() {
            Some("incompatible") => Standing::OtherBase,
            _ => Standing::Usable { flunked: flunked(version) },
        };
        Some(Listed { number, digest, created: created.unwrap_or(0), standing })
    });
    let versions = versions.collect::<Option<_>>();
    let versions = versions.ok_or_else(|| RemoteError::Answer("a version of it".to_owned()))?;
    Ok(Some(Shown { active, pinned: shown["pinned"] == true, versions }))
}

/// Both files of a version at their place, and whether they had to be fetched.
async fn fetch(
    remote: &Remote,
    (name, version): (&AdapterName, u32),
    wanted: &str,
    place: &Path,
) -> Result<([Content; 2], bool), RemoteError> {
    if let Ok(there) = contents(place)
        && manifest::digest(&there) == wanted
    {
        return Ok((there, false));
    }
    let fetched = receive_both(remote, name.as_str(), &[("version", version)], place).await?;
    if manifest::digest(&fetched) != wanted {
        let what = format!("{name}@v{version} has other bytes than its digest says");
        return Err(RemoteError::Answer(what));
    }
    settle(place)?;
    Ok((fetched, true))
}

/// Fetches both files of an adapter into a folder: of a version, or of the active one. What is there already, with the same
/// bytes, may be there.
pub(in crate::cli) async fn get(
    remote: &Remote,
    name: &str,
    version: Option<u32>,
    folder: &Path,
) -> Result<String, RemoteError> {
    let query = version.map(|version| ("version", version));
    let fetched = receive_both(remote, name, query.as_slice(), folder).await?;
    if let Err(error) = fits(folder, &fetched).and_then(|()| settle(folder)) {
        give_up(folder);
        return Err(error);
    }
    Ok(format!("{}\n", folder.display()))
}

/// Fails where a folder has other files in these files' places.
fn fits(folder: &Path, fetched: &[Content; 2]) -> Result<(), RemoteError> {
    for (file, content) in FILES.iter().zip(fetched) {
        let path = folder.join(file);
        match Content::of(&path) {
            Ok(there) if there.sha256 == content.sha256 => {}
            Ok(_) => {
                let what = "there already, with other bytes: choose another folder".to_owned();
                return Err(RemoteError::Unexpected { path, what });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(RemoteError::Unreadable { path, source }),
        }
    }
    Ok(())
}

/// Where a file of a folder is until it is complete.
fn part(folder: &Path, file: &str) -> PathBuf {
    folder.join(format!(".{file}.part"))
}

/// Receives both files of an adapter beside their places in a folder, which is made. With an error none of them is there.
async fn receive_both(
    remote: &Remote,
    name: &str,
    query: &[(&str, u32)],
    place: &Path,
) -> Result<[Content; 2], RemoteError> {
    fs::create_dir_all(place)
        .map_err(|source| RemoteError::Unwritable { path: place.to_owned(), source })?;
    let mut fetched = Vec::new();
    for file in FILES {
        let path = [ADAPTERS, name, "files", file];
        let received = match remote.send(remote.request(Method::GET, &path, query)).await {
            Ok(response) => receive(remote, response, (file, &part(place, file))).await,
            Err(error) => Err(error),
        };
        match received {
            Ok(content) => fetched.push(content),
            Err(error) => {
                give_up(place);
                return Err(error);
            }
        }
    }
    let Ok(fetched) = <[Content; 2]>::try_from(fetched) else { unreachable!("there are two") };
    Ok(fetched)
}

/// Takes back what was received.
fn give_up(place: &Path) {
    for file in FILES {
        drop(fs::remove_file(part(place, file)));
    }
    // Kept where there is something in it.
    drop(fs::remove_dir(place));
}

/// Moves what was received to its place.
fn settle(place: &Path) -> Result<(), RemoteError> {
    let unwritable = |source| RemoteError::Unwritable { path: place.to_owned(), source };
    for file in FILES {
        fs::rename(part(place, file), place.join(file)).map_err(unwritable)?;
    }
    File::open(place).and_then(|folder| folder.sync_all()).map_err(unwritable)
}

/// Writes an answer to a file, all the way to the disk.
async fn receive(
    remote: &Remote,
    response: reqwest::Response,
    (file, path): (&'static str, &Path),
) -> Result<Content, RemoteError> {
    let unwritable = |source: io::Error| RemoteError::Unwritable { path: path.to_owned(), source };
    let bar = bar(file, response.content_length().unwrap_or(0));
    let mut out = File::create(path).map_err(unwritable)?;
    let (mut hasher, mut bytes) = (Sha256::new(), 0);
    let mut pieces = response.bytes_stream();
    while let Some(piece) = pieces.next().await {
        let piece =
            piece.map_err(|source| RemoteError::Unreachable { url: remote.url.clone(), source })?;
        hasher.update(&piece);
        bytes += piece.len() as u64;
        out.write_all(&piece).map_err(unwritable)?;
        bar.inc(piece.len() as u64);
    }
    out.sync_all().map_err(unwritable)?;
    bar.finish_and_clear();
    Ok(Content { bytes, sha256: hasher.finalize().into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder in which both files have been received.
    fn received(folder: &Path) -> [Content; 2] {
        FILES.map(|file| {
            fs::write(part(folder, file), format!("new {file}")).unwrap();
            Content::of(&part(folder, file)).unwrap()
        })
    }

    #[test]
    fn a_folder_with_one_of_two_files_is_completed() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(FILES[0]), format!("new {}", FILES[0])).unwrap();
        for _ in 0..2 {
            let fetched = received(root.path());
            fits(root.path(), &fetched).unwrap();
            settle(root.path()).unwrap();
            assert_eq!(root.path().read_dir().unwrap().count(), 2);
        }
        assert_eq!(manifest::digest(&contents(root.path()).unwrap()), {
            manifest::digest(&received(root.path()))
        });
    }

    #[test]
    fn other_files_are_left_as_they_are_and_nothing_beside_them() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("copy");
        fs::create_dir(&place).unwrap();
        fs::write(place.join(FILES[1]), "old").unwrap();
        let error = fits(&place, &received(&place)).unwrap_err().to_string();
        assert!(error.contains(FILES[1]) && error.contains("other bytes"), "{error}");
        give_up(&place);
        assert_eq!(fs::read_to_string(place.join(FILES[1])).unwrap(), "old");
        assert_eq!(place.read_dir().unwrap().count(), 1);
        fs::remove_file(place.join(FILES[1])).unwrap();
        received(&place);
        give_up(&place);
        assert!(!place.exists());
    }

    fn manifest(tenant: Option<&str>, adapters: usize) -> Manifest {
        let exported = || Exported {
            name: AdapterName::parse("sql").unwrap(),
            active: None,
            pinned: false,
            versions: Vec::new(),
        };
        Manifest {
            format: FORMAT,
            chorus: "0.1.0".to_owned(),
            exported: 1,
            tenant: tenant.map(str::to_owned),
            base: Base { id: "base".to_owned(), digest: "sha256:ba5e".to_owned() },
            adapters: (0..adapters).map(|_| exported()).collect(),
        }
    }

    #[test]
    fn another_tenants_export_is_not_overwritten() {
        let may = |before: (Option<&str>, usize), tenant: Option<&str>| {
            may_replace(&manifest(before.0, before.1), tenant)
        };
        assert_eq!(may((Some("acme"), 3), Some("acme")), Ok(()));
        assert_eq!(may((None, 0), Some("acme")), Ok(()), "older versions wrote that of none");
        for (before, tenant) in [
            ((Some("acme"), 3), Some("empty")),
            ((Some("acme"), 0), Some("empty")),
            ((Some("acme"), 3), None),
            ((None, 3), Some("acme")),
            ((None, 3), None),
        ] {
            let why = may(before, tenant).unwrap_err();
            assert!(why.contains("choose another"), "{why}");
        }
    }
}
