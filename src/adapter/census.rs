//! What is in memory and what is waited for, as those see it who spread requests over servers.

use std::{
    collections::{BTreeSet, HashMap},
    time::Instant,
};

use super::{Adapters, registry::State};
use crate::lora::Digest;

/// Adapters that are in memory, and those that requests wait for, the most wanted of each first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// In memory, lent or not.
    pub resident: Vec<Digest>,
    /// Being loaded for somebody, or in line for their memory.
    pub awaited: Vec<Digest>,
    /// How many there can be in memory, if further ones are as large as those that are there: as large as the known ones, where
    /// none is.
    pub room: usize,
}

impl Adapters {
    /// How things stand, by content.
    pub fn census(&self) -> Census {
        let (resident, awaited) = self.shared.cache.census(Instant::now());
        let (standing, _) = self.shared.cache.stats();
        let (count, bytes) = match (standing.resident, standing.resident_bytes) {
            (0, _) => self.shared.registry.with(State::memory),
            resident => resident,
        };
        let taken = standing.resident_bytes + standing.loading_bytes;
        let free = self.shared.budget.saturating_sub(taken);
        let further = free.checked_div(bytes.div_ceil(count.max(1))).unwrap_or(usize::MAX);
        let room = further.saturating_add(standing.resident + standing.loading);
        Census { resident, awaited, room }
    }

    /// As what requests may name these contents in `model`, whosever they are: `NAME`, or where that means something else,
    /// `NAME@vN`. Names of several tenants may be equal.
    pub fn ids(&self, contents: &[Digest]) -> HashMap<Digest, BTreeSet<String>> {
        let contents: BTreeSet<_> = contents.iter().copied().collect();
        if contents.is_empty() {
            return HashMap::new();
        }
        self.shared.registry.with(|state| state.ids(&contents))
    }
}
