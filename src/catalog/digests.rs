//! The sha256 of a base on disk, computed once and remembered beside its size and time of change.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use sha2::{Digest as _, Sha256};

use super::{Checksum, intake::feed};

/// Keeps the digest of a directory apart from that of any file.
const DIRECTORY_TAG: &[u8] = b"chorus-base-directory-v1\0";

/// What in a Hugging Face directory decides how the model answers.
const DECISIVE: [&str; 4] = ["json", "jinja", "model", "safetensors"];

/// Hashes bases, and keeps a small record per file so that the next start need not read it whole.
///
/// A record is believed while the file's size and time of change are those it was made with; a
/// program that rewrites a file and sets its time back is believed too. Where records cannot be
/// written the hash is simply computed again.
#[derive(Clone, Debug)]
pub struct Digests {
    /// Holds one record per file.
    records: PathBuf,
}

/// What makes a record out of date when it changes.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    /// Nanoseconds since 1970.
    modified: u128,
}

impl Digests {
    /// Keeps records in the folder `records`.
    pub fn new(records: impl Into<PathBuf>) -> Self {
        Self { records: records.into() }
    }

    /// The sha256 of a file; of a directory, that of its sorted decisive files' names and sha256s.
    pub fn of(&self, base: &Path) -> io::Result<Checksum> {
        if base.is_dir() { self.of_directory(base) } else { self.of_file(base) }
    }

    fn of_directory(&self, directory: &Path) -> io::Result<Checksum> {
        let mut files = Vec::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let decides = path.extension().is_some_and(|e| DECISIVE.iter().any(|d| e == *d));
            if decides && path.is_file() {
                files.push(path);
            }
        }
        files.sort();
        let mut hasher = Sha256::new();
        hasher.update(DIRECTORY_TAG);
        for file in files {
            let name = file.file_name().unwrap_or_default().as_encoded_bytes();
            hasher.update((name.len() as u64).to_le_bytes());
            hasher.update(name);
            hasher.update(self.of_file(&file)?.as_bytes());
        }
        Ok(Checksum::from(<[u8; 32]>::from(hasher.finalize())))
    }

    fn of_file(&self, path: &Path) -> io::Result<Checksum> {
        let path = path.canonicalize()?;
        let before = stamp(&path)?;
        let record = self.record_of(&path);
        if let Some(known) = read_record(&record, before) {
            return Ok(known);
        }
        let mut hasher = Sha256::new();
        feed(&mut File::open(&path)?, &mut hasher)?;
        let checksum = Checksum::from(<[u8; 32]>::from(hasher.finalize()));
        if stamp(&path)? == before {
            write_record(&record, before, checksum);
        }
        Ok(checksum)
    }

    /// One file name per path; the path itself may hold anything.
    fn record_of(&self, path: &Path) -> PathBuf {
        let key: [u8; 32] = Sha256::digest(path.as_os_str().as_encoded_bytes()).into();
        self.records.join(format!(".sha256-{:.16}", Checksum::from(key).to_string()))
    }
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let metadata = fs::metadata(path)?;
    let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Stamp { bytes: metadata.len(), modified: modified.as_nanos() })
}

fn read_record(record: &Path, stamp: Stamp) -> Option<Checksum> {
    let text = fs::read_to_string(record).ok()?;
    let mut words = text.split_whitespace();
    let checksum = words.next()?.parse().ok()?;
    let bytes = words.next()?.parse().ok()?;
    let modified = words.next()?.parse().ok()?;
    (Stamp { bytes, modified } == stamp).then_some(checksum)
}

/// Losing a record costs one hashing, so nothing here can fail a start.
fn write_record(record: &Path, stamp: Stamp, checksum: Checksum) {
    let fresh = record.with_extension(format!("{}.new", std::process::id()));
    let line = format!("{checksum} {} {}\n", stamp.bytes, stamp.modified);
    if fs::write(&fresh, line).is_err() || fs::rename(&fresh, record).is_err() {
        drop(fs::remove_file(&fresh));
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    /// `printf abc | sha256sum`
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_record_is_used_until_the_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model.gguf");
        fs::write(&model, "abc").unwrap();
        let digests = Digests::new(dir.path());
        assert_eq!(digests.of(&model).unwrap().to_string(), ABC);

        let record = digests.record_of(&model.canonicalize().unwrap());
        let marked = fs::read_to_string(&record).unwrap().replace("ba7816", "000000");
        fs::write(&record, marked).unwrap();
        assert!(digests.of(&model).unwrap().to_string().starts_with("000000"), "read again");

        let later = SystemTime::now() + Duration::from_secs(5);
        File::options().write(true).open(&model).unwrap().set_modified(later).unwrap();
        assert_eq!(digests.of(&model).unwrap().to_string(), ABC);
    }

    #[test]
    fn no_place_for_records_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model.gguf");
        fs::write(&model, "abc").unwrap();
        let digests = Digests::new(dir.path().join("absent"));
        assert_eq!(digests.of(&model).unwrap().to_string(), ABC);
    }

    #[test]
    fn a_directory_is_known_by_the_files_that_decide() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        fs::create_dir(&base).unwrap();
        fs::write(base.join("config.json"), "{}").unwrap();
        fs::write(base.join("model.safetensors"), "weights").unwrap();
        let digests = Digests::new(dir.path());
        let first = digests.of(&base).unwrap();
        fs::write(base.join("README.md"), "words").unwrap();
        assert_eq!(digests.of(&base).unwrap(), first);
        fs::rename(base.join("config.json"), base.join("other.json")).unwrap();
        assert_ne!(digests.of(&base).unwrap(), first);
    }
}
