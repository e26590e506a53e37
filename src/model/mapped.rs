//! Base files seen as memory.
//!
//! Only a base is ever mapped: it is the operator's own file and does not change while it is served. Adapters are read.

#![expect(unsafe_code, reason = "mapping a file is the one thing here")]

use std::{fs::File, io, ops::Deref, path::Path};

/// A whole file, mapped read-only.
#[derive(Debug)]
pub(super) struct Mapped(memmap2::Mmap);

impl Mapped {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        // SAFETY: the bytes must not change while they are borrowed. They are a base's, which the operator installs by
        // renaming a finished file into place (as `chorus pull` does) and does not write to while it is served.
        unsafe { memmap2::Mmap::map(&file) }.map(Self)
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
