//! Adapters without their names: what they are, where their files are, and what they were used for.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use crate::{
    adapter::{Facts, record::Blob},
    lora::Matrices,
};

/// An adapter without its names.
#[derive(Debug)]
pub(in crate::adapter) struct Content {
    pub(in crate::adapter) facts: Facts,
    /// Bytes of memory it takes: those of the facts, until a load has shown others.
    memory: AtomicUsize,
}

impl Content {
    fn new(facts: Facts, matrices: Matrices) -> Self {
        let memory = AtomicUsize::new(facts.memory.of(matrices));
        Self { facts, memory }
    }

    /// Bytes of memory it takes when it is loaded.
    pub(in crate::adapter) fn memory(&self) -> usize {
        self.memory.load(Ordering::Relaxed)
    }

    /// A load has shown what it takes.
    pub(in crate::adapter) fn set_memory(&self, bytes: usize) {
        self.memory.store(bytes, Ordering::Relaxed);
    }
}

/// What a version was used for since the start. It is the version's and not the content's: who else has the same bytes,
/// and uses them, is nobody's business.
#[derive(Debug, Default)]
pub(in crate::adapter) struct Usage {
    lent: AtomicU64,
    /// Unix seconds; 0 before the first time.
    last: AtomicU64,
    live: AtomicUsize,
}

impl Usage {
    /// Counts a lease that begins at this time, in unix seconds.
    pub(in crate::adapter) fn begin(&self, now: u64) {
        self.lent.fetch_add(1, Ordering::Relaxed);
        self.last.store(now, Ordering::Relaxed);
        self.live.fetch_add(1, Ordering::Relaxed);
    }

    /// A lease has ended.
    pub(in crate::adapter) fn end(&self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }

    /// Leases counted.
    pub(in crate::adapter) fn lent(&self) -> u64 {
        self.lent.load(Ordering::Relaxed)
    }

    /// When the last one began, in unix seconds.
    pub(in crate::adapter) fn last(&self) -> Option<u64> {
        Some(self.last.load(Ordering::Relaxed)).filter(|at| *at > 0)
    }

    /// Leases that have not ended.
    pub(in crate::adapter) fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }
}

/// Both files of a version in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::adapter) struct Files {
    pub(in crate::adapter) config: Blob,
    pub(in crate::adapter) weights: Blob,
}

/// A content and where it can be read.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) content: Arc<Content>,
    /// One for each version in the store that has it.
    pub(super) files: Vec<Files>,
    /// The folder has it.
    pub(super) in_folder: bool,
}

impl Held {
    pub(super) fn new(facts: Facts, matrices: Matrices) -> Self {
        let content = Arc::new(Content::new(facts, matrices));
        Self { content, files: Vec::new(), in_folder: false }
    }
}
