//! Who has used how much: an append-only ledger that bills can be written from.
//!
//! ```text
//! a request ends -> one line in this server's journal -> its last bytes are sent
//! each ten minutes, and at the end -> the journal is closed, summed by hour, put into the store as a sheet, and erased
//! asked for -> all sheets, and what this server has not put there yet
//! ```
//!
//! - A line is with the system before the client can know that its request has ended, so nothing that was acknowledged is
//!   lost with the process; it is on the disk within a second, which is what a loss of power can take.
//! - Journals of several stores may be in one folder: each store's are in a sub-folder that is called after its id.
//! - A journal has one name, and so has the sheet that comes of it: a second attempt to put it finds the first.
//! - A journal that somebody removes before the store has it is written again from memory, under its name.
//! - A journal is locked by the process that writes it. Those that nobody holds are put into the store by whoever finds them.
//!
//! Knows tenants and the store, and of adapters only what they are called.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Weak, mpsc},
    time::Duration,
};

use tokio::sync::oneshot;

pub use self::{
    entry::{Account, Entry, Period, Spent, Sums, Used},
    totals::{Part, Total},
    turns::Asker,
};
use self::{
    journal::{Closed, Order},
    totals::Totals,
    turns::Turns,
};
use crate::store::{Store, StoreError};

mod entry;
mod journal;
mod totals;
mod turns;

/// Where sheets are in the store.
const SHEETS: &str = "usage";
/// How long a line may be in a journal before other servers see it.
const ROTATION: Duration = Duration::from_mins(10);
/// How often a journal that has no place in the store is tried again, and those of servers that have died are looked for.
const RETRY: Duration = Duration::from_secs(30);
/// No line is further in time from the beginning of its journal, before it or after it: not where clocks are set, and not where
/// lines wait for a disk that is full.
const LONGEST_JOURNAL: u64 = 24 * 3600;
/// Sheets that are read side by side.
const READERS: usize = 32;

/// Notes what is used. Clones share it.
#[derive(Clone)]
pub struct Ledger {
    shared: Arc<Shared>,
}

struct Shared {
    store: Store,
    folder: PathBuf,
    orders: mpsc::Sender<Order>,
    standing: Arc<Mutex<Standing>>,
    /// Held while journals are put into the store.
    putting: tokio::sync::Mutex<()>,
    /// Of those who have all sheets read.
    turns: Turns,
}

/// Why there is no ledger.
#[derive(Debug, thiserror::Error)]
pub enum NotOpened {
    /// The store does not say which it is.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The folder cannot be made, read or written.
    #[error(transparent)]
    Folder(#[from] io::Error),
}

/// Why there are no sums.
#[derive(Debug, thiserror::Error)]
pub enum NotSummed {
    /// The tenant has not got its last answer yet.
    #[error("this tenant's usage is being summed for an earlier request: wait for its answer")]
    AskedAlready,
    /// The sheets cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is not in the store yet, and what there was since the start.
#[derive(Debug, Default)]
struct Standing {
    /// By journal: that of the journal which is written now, and of those that have been closed.
    unstored: BTreeMap<String, Sums>,
    /// In no journal, because the disk takes nothing.
    behind: Sums,
    totals: Totals,
}

/// Why the lock is never poisoned.
const NO_PANIC: &str = "nothing that is done under it panics";

impl Ledger {
    /// Keeps its journals in `folder`, which must outlive the process, and its sheets in the store. What a process before
    /// this one has left in the folder counts from the beginning, and is put into the store.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub async fn open(store: Store, folder: &Path) -> Result<Self, NotOpened> {
        let folder = folder.join(store.id().await?);
        fs::create_dir_all(&folder)?;
        let folder = folder.canonicalize()?;
        // Another process may put them into the store from here on: they have the same names there.
        let left = journal::closed(&folder)?.into_iter().map(|Closed { id, sums, .. }| (id, sums));
        let standing = Standing { unstored: left.collect(), ..Standing::default() };
        let standing = Arc::new(Mutex::new(standing));
        let orders = journal::start((folder.clone(), store.clone()), Arc::clone(&standing))?;
        let (putting, turns) = Default::default();
        let shared = Arc::new(Shared { store, folder, orders, standing, putting, turns });
        tokio::spawn(keep(Arc::downgrade(&shared)));
        Ok(Self { shared })
    }

    /// Notes what was used, and returns when it outlives this process.
    pub async fn note(&self, entry: Entry) {
        let (done, is_done) = oneshot::channel();
        self.send(Order::Note(entry, Some(done)));
        // The thread drops it only where it has gone itself, which it has logged.
        drop(is_done.await);
    }

    /// Notes what was used by somebody who waits for nothing any more.
    pub fn note_later(&self, entry: Entry) {
        self.send(Order::Note(entry, None));
    }

    /// What was used since the start, versions of an adapter together.
    pub fn totals(&self) -> Vec<Total> {
        self.shared.standing().totals.list()
    }

    /// What was used by those whom `wanted` names between two unix times, summed by `period`.
    ///
    /// Hours are not divided: one that begins within the time counts as a whole.
    pub async fn sums(
        &self,
        asker: Asker,
        (from, to): (u64, u64),
        period: Period,
        wanted: impl Fn(&Account) -> bool,
    ) -> Result<Sums, NotSummed> {
        let _turn = self.shared.turns.take(asker).await.ok_or(NotSummed::AskedAlready)?;
        // Before the sheets are listed: what is put meanwhile is in both, and counts once.
        let (unstored, behind) = {
            let standing = self.shared.standing();
            (standing.unstored.clone(), standing.behind.clone())
        };
        let names = self.shared.store.sheets(SHEETS).await?;
        let mut sums = Sums::default();
        let mut add = |more: &Sums| {
            let within =
                |hour: u64, account: &Account| (from..to).contains(&hour) && wanted(account);
            sums.add_all(more, within, |hour| period.of(hour).max(from));
        };
        unstored.iter().filter(|(id, _)| !names.contains(*id)).for_each(|(_, more)| add(more));
        add(&behind);
        let dated = |id: &&String| {
            // One whose name says nothing is read.
            journal::created(id).is_none_or(|at| {
                at.saturating_sub(LONGEST_JOURNAL) < to && at.saturating_add(LONGEST_JOURNAL) > from
            })
        };
        let wanted_sheets: Vec<_> = names.iter().filter(dated).collect();
        for some in wanted_sheets.chunks(READERS) {
            let reads = some.iter().map(|id| self.shared.store.sheet::<Sums>(SHEETS, id));
            futures_util::future::try_join_all(reads).await?.iter().for_each(&mut add);
        }
        Ok(sums)
    }

    /// Puts all that was noted here into the store.
    pub async fn put(&self) -> Result<(), StoreError> {
        self.shared.close_journal().await;
        self.shared.put_closed().await
    }

    fn send(&self, order: Order) {
        if self.shared.orders.send(order).is_err() {
            tracing::error!("the thread that writes the ledger has ended: usage is not noted");
        }
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("folder", &self.shared.folder).finish_non_exhaustive()
    }
}

impl Shared {
    fn standing(&self) -> std::sync::MutexGuard<'_, Standing> {
        self.standing.lock().expect(NO_PANIC)
    }

    async fn close_journal(&self) {
        let (done, is_done) = oneshot::channel();
        if self.orders.send(Order::Close(done)).is_ok() {
            drop(is_done.await);
        }
    }

    /// Puts what nobody writes to any more into the store, and erases it here.
    async fn put_closed(&self) -> Result<(), StoreError> {
        let _one_at_a_time = self.putting.lock().await;
        let folder = self.folder.clone();
        let found = tokio::task::spawn_blocking(move || journal::closed(&folder)).await;
        let found = found.unwrap_or_else(|lost| Err(io::Error::other(lost)));
        let closed = found.unwrap_or_else(|error| {
            tracing::error!(%error, folder = %self.folder.display(), "journals of usage cannot be read");
            Vec::new()
        });
        for Closed { id, path, sums, lock } in closed {
            if !sums.is_empty() {
                self.store.put_sheet(SHEETS, &id, &sums).await?;
            }
            // Before its file is gone: that would be written again.
            self.standing().unstored.remove(&id);
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                // It is in the store under its name, and is found there the next time.
                tracing::warn!(%error, path = %path.display(), "a journal is not erased yet");
            }
            drop(lock);
        }
        Ok(())
    }
}

/// Puts journals into the store, until the last handle is gone.
async fn keep(shared: Weak<Shared>) {
    let mut since_closed = Duration::ZERO;
    loop {
        {
            let Some(shared) = shared.upgrade() else { return };
            if since_closed >= ROTATION {
                since_closed = Duration::ZERO;
                shared.close_journal().await;
            }
            if let Err(error) = shared.put_closed().await {
                tracing::warn!(%error, "usage is kept here until the store takes it");
            }
        }
        tokio::time::sleep(RETRY).await;
        since_closed += RETRY;
    }
}

#[cfg(test)]
mod tests;
