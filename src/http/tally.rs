//! What one request uses, noted in the ledger once, however it ends.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use super::{report::Report, select::Voice};
use crate::{
    engine::Event,
    ledger::{Account, Entry, Ledger, Spent, Used},
    tenant::TenantId,
};

/// What all mixes of a tenant's adapters are called in its account.
pub(super) const MIXES: &str = "(mixes)";

/// Adds up a request whose jobs are running. Where it is dropped before it is settled, the client has gone: what was computed
/// until then is noted.
#[derive(Debug)]
pub(super) struct Tally {
    ledger: Ledger,
    account: Account,
    counts: Arc<Counts>,
    settled: bool,
}

/// Tokens that the choices of a request have used so far.
#[derive(Debug, Default)]
pub(super) struct Counts {
    prompt: AtomicU64,
    cached: AtomicU64,
    generated: AtomicU64,
}

impl Counts {
    /// Takes in what happens to a choice. The first of a prompt's brings the length of that: it is used when it begins.
    pub(super) fn count(&self, event: &Event, prompt: Option<usize>) {
        let add = |sum: &AtomicU64, more: usize| sum.fetch_add(more as u64, Ordering::Relaxed);
        match (event, prompt) {
            (Event::Begun { cached, .. }, Some(prompt)) => {
                add(&self.prompt, prompt);
                add(&self.cached, *cached);
            }
            (Event::Token { .. }, _) => {
                add(&self.generated, 1);
            }
            _ => {}
        }
    }

    /// The tokens until now.
    pub(super) fn so_far(&self) -> Spent {
        Spent {
            prompt_tokens: self.prompt.load(Ordering::Relaxed),
            cached_tokens: self.cached.load(Ordering::Relaxed),
            generated_tokens: self.generated.load(Ordering::Relaxed),
            ..Spent::default()
        }
    }
}

impl Tally {
    /// Of a request whose first job has been submitted.
    pub(super) fn new(ledger: Ledger, tenant: TenantId, voice: &Voice, report: &Report) -> Self {
        let adapter = match voice {
            Voice::Base => None,
            Voice::Adapter(revision) => {
                Some(Used { name: revision.name.to_string(), version: revision.version })
            }
            Voice::Mix(_) => Some(Used { name: MIXES.to_owned(), version: 0 }),
        };
        let account = Account { tenant, adapter };
        let counts = Arc::default();
        report.counted_in(&counts);
        Self { ledger, account, counts, settled: false }
    }

    /// Where its choices count.
    pub(super) fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// All choices have ended: notes what they used, before the client learns of it.
    pub(super) async fn settle(&mut self) {
        if !self.settled {
            self.settled = true;
            self.ledger.note(self.entry()).await;
        }
    }

    fn entry(&self) -> Entry {
        let spent = Spent { requests: 1, ..self.counts.so_far() };
        Entry { at: now(), account: self.account.clone(), spent }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        if !self.settled {
            self.ledger.note_later(self.entry());
        }
    }
}

/// An upload that was kept.
pub(super) fn upload(tenant: TenantId, adapter: Used, bytes: u64) -> Entry {
    let account = Account { tenant, adapter: Some(adapter) };
    let spent = Spent { uploads: 1, upload_bytes: bytes, ..Spent::default() };
    Entry { at: now(), account, spent }
}

/// In unix seconds.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
