//! Writes what a source sends, and finds out whether it is what the catalog asks for.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::Path,
};

use sha2::{Digest as _, Sha256};

use super::Checksum;

/// Large enough that system calls do not show beside hashing.
pub(super) const BUFFER: usize = 1 << 18;

/// A file under construction: bounded in length, hashed as it is written.
#[derive(Debug)]
pub(super) struct Intake {
    file: File,
    hasher: Sha256,
    written: u64,
    /// Exact length of a whole file.
    bytes: u64,
}

/// Why what was sent is not the file that was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotTheFile {
    #[error("it sent more than the {bytes} bytes expected")]
    TooLong { bytes: u64 },
    #[error("it sent {got} of {bytes} bytes")]
    TooShort { got: u64, bytes: u64 },
    #[error("what it sent has sha256 {got}, not {expected}")]
    Checksum { got: Checksum, expected: Checksum },
    #[error(transparent)]
    Disk(#[from] io::Error),
}

impl Intake {
    /// Begins anew at `path`, whatever is there.
    pub(super) fn create(path: &Path, bytes: u64) -> io::Result<Self> {
        Ok(Self { file: File::create(path)?, hasher: Sha256::new(), written: 0, bytes })
    }

    /// Goes on with what an interrupted run left at `path`, or begins anew where that cannot be
    /// the beginning of a file of `bytes`.
    pub(super) fn resume(path: &Path, bytes: u64) -> io::Result<Self> {
        let mut file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
        if file.metadata()?.len() > bytes {
            file.set_len(0)?;
        }
        let mut hasher = Sha256::new();
        let written = feed(&mut file, &mut hasher)?;
        Ok(Self { file, hasher, written, bytes })
    }

    /// Bytes that are there.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Length of the whole file.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends what came next.
    pub(super) fn write(&mut self, chunk: &[u8]) -> Result<(), NotTheFile> {
        let written = self.written + chunk.len() as u64;
        if written > self.bytes {
            return Err(NotTheFile::TooLong { bytes: self.bytes });
        }
        self.file.write_all(chunk)?;
        self.hasher.update(chunk);
        self.written = written;
        Ok(())
    }

    /// The whole file is there: it must be the one `expected`, and survive a loss of power.
    pub(super) fn finish(self, expected: Checksum) -> Result<(), NotTheFile> {
        if self.written < self.bytes {
            return Err(NotTheFile::TooShort { got: self.written, bytes: self.bytes });
        }
        let got = Checksum::from(<[u8; 32]>::from(self.hasher.finalize()));
        if got != expected {
            return Err(NotTheFile::Checksum { got, expected });
        }
        Ok(self.file.sync_all()?)
    }
}

/// Hashes the rest of `file`; returns its length.
pub(super) fn feed(file: &mut File, hasher: &mut Sha256) -> io::Result<u64> {
    let mut buffer = vec![0; BUFFER];
    let mut total = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(total),
            read => {
                hasher.update(&buffer[..read]);
                total += read as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sha256(bytes: &[u8]) -> Checksum {
        Checksum::from(<[u8; 32]>::from(Sha256::digest(bytes)))
    }

    #[test]
    fn a_whole_file_is_taken_in_pieces_and_across_runs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("part");
        let mut first = Intake::resume(&path, 6).unwrap();
        first.write(b"abc").unwrap();
        drop(first);
        let mut second = Intake::resume(&path, 6).unwrap();
        assert_eq!(second.written(), 3);
        second.write(b"def").unwrap();
        second.finish(sha256(b"abcdef")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"abcdef");
    }

    #[test]
    fn a_remainder_that_is_too_long_is_thrown_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("part");
        std::fs::write(&path, b"longer than six").unwrap();
        assert_eq!(Intake::resume(&path, 6).unwrap().written(), 0);
    }

    #[test]
    fn too_long_too_short_and_other_bytes_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("part");
        let mut intake = Intake::create(&path, 3).unwrap();
        assert!(matches!(intake.write(b"abcd"), Err(NotTheFile::TooLong { bytes: 3 })));
        intake.write(b"ab").unwrap();
        let short = intake.finish(sha256(b"abc"));
        assert!(matches!(short, Err(NotTheFile::TooShort { got: 2, bytes: 3 })));

        let mut intake = Intake::create(&path, 3).unwrap();
        intake.write(b"abx").unwrap();
        assert!(matches!(intake.finish(sha256(b"abc")), Err(NotTheFile::Checksum { .. })));
    }
}
