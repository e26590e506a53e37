//! How adapters come to a device before those who wait for them are let in.

use std::{collections::BTreeSet, sync::Arc};

use super::Worker;
use crate::{
    engine::{
        answer::Answer,
        job::Failure,
        sequence::SequenceId,
        stats::End,
        step::{Brought, Forward, Side},
    },
    lora::{Adapter, Digest},
};

/// Adapters that are brought to a device before those who wait for them are let in...
const WANTED: usize = 8;
/// ...and how many of those who wait are asked for theirs.
const LOOKED_AT: usize = 64;

impl<F: Forward> Worker<F> {
    /// Has the adapters of those who wait brought to the device, where there is one, and tells the scheduler who may come in.
    pub(super) fn prepare(&mut self) {
        if self.network.side() == Side::Host {
            return;
        }
        let of = |id: SequenceId| self.answers.get(&id).and_then(Answer::adapter);
        let mut wanted: Vec<Arc<Adapter>> = Vec::new();
        for adapter in self.scheduler.upcoming().take(LOOKED_AT).filter_map(of) {
            if wanted.len() < WANTED
                && wanted.iter().all(|other| other.digest() != adapter.digest())
            {
                wanted.push(Arc::clone(adapter));
            }
        }
        let keeping: Vec<_> = self.scheduler.keeping().filter_map(of).map(Arc::clone).collect();
        let Brought { there, lost } =
            self.network.prepare(&wanted, &keeping).unwrap_or_else(|error| {
                // They come in, and their steps tell why they fail.
                tracing::error!(%error, "no adapter comes to the device");
                Brought::default()
            });
        self.scheduler.set_there(there);
        self.lose(&lost);
    }

    /// Ends those whose adapters cannot be brought: they alone, and no step that others have rows in.
    fn lose(&mut self, lost: &BTreeSet<Digest>) {
        let is_lost = |answer: &Answer| {
            answer.adapter().is_some_and(|adapter| {
                let mut parts = adapter.parts().map(|(part, _)| part.digest());
                lost.contains(&adapter.digest()) || parts.any(|digest| lost.contains(&digest))
            })
        };
        if lost.is_empty() {
            return;
        }
        let ids = self.answers.iter().filter(|(_, answer)| is_lost(answer));
        let ids: Vec<_> = ids.map(|(id, _)| *id).collect();
        for id in ids {
            self.end(id, End::Failed(Failure::Step));
        }
    }

    /// Waits for an adapter that is on its way; false where none is.
    pub(super) fn settle(&mut self) -> bool {
        self.network.settle().unwrap_or_else(|error| {
            tracing::error!(%error, "no adapter comes to the device");
            false
        })
    }
}
