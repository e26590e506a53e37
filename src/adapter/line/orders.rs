//! What the line is asked for, and what it orders.

use std::sync::Arc;

use super::Owner;
use crate::{adapter::LoadError, lora::Digest};

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::adapter) struct Want {
    /// For whom.
    pub(in crate::adapter) owner: Owner,
    /// Which adapter.
    pub(in crate::adapter) digest: Digest,
    /// What it takes of memory once it is loaded.
    pub(in crate::adapter) bytes: usize,
}

/// Names one waiting request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::adapter) struct Ticket {
    pub(super) want: Want,
    pub(super) number: u64,
}

/// The answer to a request, as far as there is one already.
#[derive(Debug)]
pub(in crate::adapter) enum Asked<V> {
    /// It was in memory; one lease is counted.
    Lent(Arc<V>),
    /// An answer will be among some later event's orders, unless the ticket leaves.
    Waits(Ticket),
}

/// What a request waited for that left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::adapter) enum Waited {
    /// A load, or room in the memory.
    ForRoom,
    /// Room in its owner's portion, which is this large.
    ForPortion(usize),
}

/// What the outside has to do after an event, in this order.
#[derive(Debug)]
#[must_use]
pub(in crate::adapter) struct Orders<V, W> {
    /// Waiters that have their answer, and what they asked for; with `Ok` one lease each is counted.
    pub(in crate::adapter) answers: Vec<(W, Want, Answer<V>)>,
    /// Adapters that nothing names any more, or that their owner has no room for: to be dropped outside of the lock.
    pub(in crate::adapter) dropped: Vec<Arc<V>>,
    /// Loads to begin. Each ends in exactly one call of [`Line::loaded`](super::Line::loaded) or [`Line::failed`](super::Line::failed).
    pub(in crate::adapter) loads: Vec<Load<V>>,
}

/// What a waiter gets in the end.
pub(in crate::adapter) type Answer<V> = Result<Arc<V>, Arc<LoadError>>;

/// One load whose memory is reserved.
#[derive(Debug)]
pub(in crate::adapter) struct Load<V> {
    /// What to load.
    pub(in crate::adapter) digest: Digest,
    /// Bytes that are reserved for it.
    pub(in crate::adapter) bytes: usize,
    /// Adapters that made room: to be dropped before the load takes memory.
    pub(in crate::adapter) evicted: Vec<Arc<V>>,
}

impl<V, W> Orders<V, W> {
    pub(super) fn none() -> Self {
        Self { answers: Vec::new(), dropped: Vec::new(), loads: Vec::new() }
    }
}
