//! A base such as the catalog lists, and somebody who does not listen, for tests.

use sha2::{Digest as _, Sha256};

use super::{Checksum, Entry, Progress};

/// The base `tiny`, whose file has this content; it has no sources.
pub(super) fn entry(content: &[u8]) -> Entry {
    Entry {
        name: "tiny".into(),
        about: String::new(),
        file: "tiny.gguf".into(),
        bytes: content.len() as u64,
        sha256: Checksum::from(<[u8; 32]>::from(Sha256::digest(content))),
        license: "Apache-2.0".into(),
        sources: Vec::new(),
    }
}

/// Nobody listens.
pub(super) struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &str, _: u64) {}
    fn at(&self, _: u64) {}
    fn note(&self, _: &str) {}
}
