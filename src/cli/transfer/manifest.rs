//! What an export holds.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::super::{adapter::FILES, remote::RemoteError};
use crate::{adapter::AdapterName, lora::Digest};

/// What this version writes and reads.
pub(super) const FORMAT: u32 = 1;
const FILE: &str = "manifest.json";
/// A manifest takes some hundred bytes a version.
const MOST_BYTES: u64 = 256 << 20;
/// Bytes that are hashed at once.
const PIECE: usize = 256 << 10;

/// An export, without its files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// How it is written.
    pub(super) format: u32,
    /// The version of chorus that wrote it.
    pub(super) chorus: String,
    /// When, in unix seconds.
    pub(super) exported: u64,
    /// Whose adapters; older versions did not know it where there are none.
    pub(super) tenant: Option<String>,
    /// The base that they were served on.
    pub(super) base: Base,
    pub(super) adapters: Vec<Exported>,
}

/// A base, by name and content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Base {
    pub(super) id: String,
    /// `sha256:HEX`
    pub(super) digest: String,
}

/// One adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Exported {
    /// Read as a name that can be one, because it becomes a part of paths.
    pub(super) name: AdapterName,
    /// What the name points to.
    pub(super) active: Option<u32>,
    pub(super) pinned: bool,
    /// By number.
    pub(super) versions: Vec<Version>,
}

/// One of its versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Version {
    #[serde(rename = "version")]
    pub(super) number: u32,
    /// `sha256:HEX`, of both files together.
    pub(super) digest: String,
    /// In unix seconds.
    pub(super) created: u64,
    /// In the order of [`FILES`].
    pub(super) files: [FileOf; 2],
}

/// One of its files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileOf {
    pub(super) name: String,
    pub(super) bytes: u64,
    /// In hexadecimal.
    pub(super) sha256: String,
}

/// What a file has.
pub(super) struct Content {
    pub(super) bytes: u64,
    pub(super) sha256: [u8; 32],
}

impl Content {
    /// Reads all of a file.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let (mut file, mut hasher, mut bytes) = (File::open(path)?, Sha256::new(), 0);
        let mut piece = vec![0; PIECE];
        loop {
            let read = file.read(&mut piece)?;
            if read == 0 {
                return Ok(Self { bytes, sha256: hasher.finalize().into() });
            }
            hasher.update(&piece[..read]);
            bytes += read as u64;
        }
    }
}

/// The digest of an adapter with these two files, as the API writes it.
pub(super) fn digest([config, weights]: &[Content; 2]) -> String {
    format!("sha256:{}", Digest::of_hashes(config.sha256, weights.sha256))
}

/// Both files of a folder.
pub(super) fn contents(folder: &Path) -> Result<[Content; 2], RemoteError> {
    let [config, weights] = FILES.map(|file| {
        let path = folder.join(file);
        Content::of(&path).map_err(|source| RemoteError::Unreadable { path, source })
    });
    Ok([config?, weights?])
}

impl Version {
    pub(super) fn new(number: u32, created: u64, contents: &[Content; 2]) -> Self {
        let file = |at: usize| FileOf {
            name: FILES[at].to_owned(),
            bytes: contents[at].bytes,
            sha256: hex(contents[at].sha256),
        };
        Self { number, digest: digest(contents), created, files: [file(0), file(1)] }
    }

    /// Fails unless the files of a folder are those that were exported.
    pub(super) fn check(&self, folder: &Path) -> Result<(), RemoteError> {
        let found = contents(folder)?;
        for (at, (wanted, found)) in self.files.iter().zip(&found).enumerate() {
            let what = if wanted.bytes != found.bytes {
                format!("{} bytes long and was {} when it was exported", found.bytes, wanted.bytes)
            } else if wanted.sha256 != hex(found.sha256) {
                "not what was exported: its sha256 is another".to_owned()
            } else {
                continue;
            };
            return Err(RemoteError::Unexpected { path: folder.join(FILES[at]), what });
        }
        if digest(&found) != self.digest {
            let what = "not what its digest in the manifest says".to_owned();
            return Err(RemoteError::Unexpected { path: folder.to_owned(), what });
        }
        Ok(())
    }
}

impl Manifest {
    /// Reads what is in a folder; `None` where there is none.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>, RemoteError> {
        let path = folder.join(FILE);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RemoteError::Unreadable { path, source }),
        };
        let mut text = String::new();
        let read = file.take(MOST_BYTES).read_to_string(&mut text);
        read.map_err(|source| RemoteError::Unreadable { path: path.clone(), source })?;
        let unexpected = |what: String| RemoteError::Unexpected { path: path.clone(), what };
        let manifest: Self = serde_json::from_str(&text)
            .map_err(|error| unexpected(format!("no manifest of an export: {error}")))?;
        if manifest.format != FORMAT {
            let found = manifest.format;
            return Err(unexpected(format!("of format {found}, and this chorus reads {FORMAT}")));
        }
        Ok(Some(manifest))
    }

    /// Puts it into a folder, in the place of what was there.
    pub(super) fn write(&self, folder: &Path) -> Result<(), RemoteError> {
        let (path, part) = (folder.join(FILE), folder.join(format!(".{FILE}.part")));
        let text = serde_json::to_string_pretty(self).unwrap_or_default() + "\n";
        let written = File::create(&part)
            .and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            })
            .and_then(|()| std::fs::rename(&part, &path))
            .and_then(|()| File::open(folder)?.sync_all());
        written.map_err(|source| RemoteError::Unwritable { path, source })
    }
}

/// Where a version's files lie in an export.
pub(super) fn place(folder: &Path, name: &AdapterName, version: u32) -> PathBuf {
    folder.join("adapters").join(name.as_str()).join(format!("v{version}"))
}

fn hex(sha256: [u8; 32]) -> String {
    sha256.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exported(folder: &Path) -> Version {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join(FILES[0]), "{}").unwrap();
        std::fs::write(folder.join(FILES[1]), "weights").unwrap();
        Version::new(3, 7, &contents(folder).unwrap())
    }

    #[test]
    fn a_manifest_is_written_and_read_back() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Manifest::read(root.path()).unwrap(), None);
        let name = AdapterName::parse("sql").unwrap();
        let version = exported(&place(root.path(), &name, 3));
        assert_eq!(version.digest, format!("sha256:{}", Digest::of(b"{}", b"weights")));
        let manifest = Manifest {
            format: FORMAT,
            chorus: "0.1.0".to_owned(),
            exported: 1,
            tenant: Some("acme".to_owned()),
            base: Base { id: "base".to_owned(), digest: "sha256:ba5e".to_owned() },
            adapters: vec![Exported {
                name,
                active: Some(3),
                pinned: false,
                versions: vec![version],
            }],
        };
        manifest.write(root.path()).unwrap();
        assert_eq!(Manifest::read(root.path()).unwrap(), Some(manifest.clone()));
        let text = serde_json::to_string(&manifest).unwrap();
        for (spoilt, why) in [
            (text.replace(r#""format":1"#, r#""format":2"#), "format 2"),
            (text.replace(r#""sql""#, r#""../sql""#), "no manifest"),
            ("{}".to_owned(), "no manifest"),
        ] {
            std::fs::write(root.path().join(FILE), spoilt).unwrap();
            let error = Manifest::read(root.path()).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(FILE), "{error}");
        }
    }

    #[test]
    fn files_that_are_not_what_was_exported_are_named() {
        let root = tempfile::tempdir().unwrap();
        let version = exported(root.path());
        version.check(root.path()).unwrap();
        for (file, text, why) in [
            (FILES[0], "{ }", "3 bytes long and was 2"),
            (FILES[1], "Weights", "its sha256 is another"),
        ] {
            let before = std::fs::read(root.path().join(file)).unwrap();
            std::fs::write(root.path().join(file), text).unwrap();
            let error = version.check(root.path()).unwrap_err().to_string();
            assert!(error.contains(file) && error.contains(why), "{error}");
            std::fs::write(root.path().join(file), before).unwrap();
        }
        std::fs::remove_file(root.path().join(FILES[1])).unwrap();
        assert!(version.check(root.path()).unwrap_err().to_string().contains(FILES[1]));
    }
}
