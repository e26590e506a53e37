//! The lines that are not in the store yet: one file, written by one thread.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::sync::oneshot;

use super::{Entry, NO_PANIC, Standing, Sums};
use crate::store::Store;

/// How a journal's file is called.
const ENDING: &str = "journal";
/// How it is called until it is locked.
const UNLOCKED: &str = "new";
/// Lines written at once.
const BATCH: usize = 1024;
/// How long a line may be with the system alone, and how long it may go unnoticed that a journal is gone.
const SYNC: Duration = Duration::from_secs(1);

/// What the thread is told.
pub(super) enum Order {
    /// To write a line, and who waits for that.
    Note(Entry, Option<oneshot::Sender<()>>),
    /// To write no more lines to this file.
    Close(oneshot::Sender<()>),
}

/// A journal that nobody writes to.
pub(super) struct Closed {
    /// Its name, without the ending.
    pub(super) id: String,
    pub(super) path: PathBuf,
    pub(super) sums: Sums,
    /// Nobody else takes it as long as this is held.
    pub(super) lock: File,
}

/// Starts the thread. It ends when all senders are gone.
pub(super) fn start(
    (folder, store): (PathBuf, Store),
    standing: Arc<Mutex<Standing>>,
) -> io::Result<mpsc::Sender<Order>> {
    let (sender, orders) = mpsc::channel();
    let (looked, behind) = (Instant::now(), Vec::new());
    let journal = Journal { folder, store, standing, open: None, behind, looked };
    thread::Builder::new().name("ledger".to_owned()).spawn(move || journal.run(&orders))?;
    Ok(sender)
}

struct Journal {
    folder: PathBuf,
    /// Knows whether the folder is away with the store's own, and will be back.
    store: Store,
    standing: Arc<Mutex<Standing>>,
    open: Option<Open>,
    /// What the disk has not taken.
    behind: Vec<Entry>,
    /// When all journals were last looked for.
    looked: Instant,
}

struct Open {
    file: File,
    id: String,
    /// Bytes of what was noted.
    len: u64,
    /// There may be more bytes than that: a write that failed.
    torn: bool,
    /// When the oldest line was written that may not be on the disk.
    unsynced: Option<Instant>,
}

impl Journal {
    fn run(mut self, orders: &mpsc::Receiver<Order>) {
        loop {
            let (mut entries, mut waiting, mut closes) = (Vec::new(), Vec::new(), Vec::new());
            let first = match orders.recv_timeout(SYNC) {
                Ok(order) => Some(order),
                Err(mpsc::RecvTimeoutError::Timeout) => None,
                Err(mpsc::RecvTimeoutError::Disconnected) => return self.sync(Duration::ZERO),
            };
            for order in first.into_iter().chain(orders.try_iter()).take(BATCH) {
                match order {
                    Order::Note(entry, waits) => {
                        entries.push(entry);
                        waiting.extend(waits);
                    }
                    Order::Close(waits) => closes.push(waits),
                }
            }
            self.look_after();
            self.note(entries);
            for waits in waiting {
                // Who waited may have gone.
                let _ = waits.send(());
            }
            self.sync(if closes.is_empty() { SYNC } else { Duration::ZERO });
            for waits in closes {
                self.open = None;
                let _ = waits.send(());
            }
        }
    }

    fn note(&mut self, entries: Vec<Entry>) {
        let mut standing = self.standing.lock().expect(NO_PANIC);
        for entry in &entries {
            standing.totals.add(&entry.account, &entry.spent);
        }
        drop(standing);
        let late = !self.behind.is_empty();
        self.behind.extend(entries);
        if self.behind.is_empty() {
            return;
        }
        let written = self.write();
        if written.is_err() {
            self.condense();
        }
        let mut standing = self.standing.lock().expect(NO_PANIC);
        standing.behind = Sums::default();
        match (written, &self.open) {
            (Ok(()), Some(open)) => {
                let sums = standing.unstored.entry(open.id.clone()).or_default();
                self.behind.drain(..).for_each(|entry| sums.add(&entry));
                if late {
                    tracing::info!("usage is written down again");
                }
            }
            (written, _) => {
                if let (Err(error), false) = (written, late) {
                    let folder = self.folder.display();
                    tracing::error!(%error, %folder, "usage cannot be written down, and is kept in memory until it can");
                }
                self.behind.iter().for_each(|entry| standing.behind.add(entry));
            }
        }
    }

    /// Journals that somebody has removed before the store had them are written again as they were, under their names, so that
    /// they count once also where a copy of them comes back.
    fn look_after(&mut self) {
        let is_removed = self.open.as_ref().is_some_and(Open::is_removed);
        if is_removed {
            self.open = None;
        } else if self.looked.elapsed() < SYNC {
            return;
        }
        self.looked = Instant::now();
        if self.store.is_away_with(&self.folder) {
            return;
        }
        if self.open.as_ref().is_some_and(|open| !open.is_at(&open.place(&self.folder))) {
            self.open = None;
        }
        let open = self.open.as_ref().map(|open| &open.id);
        let unstored: Vec<_> =
            self.standing.lock().expect(NO_PANIC).unstored.keys().cloned().collect();
        for id in unstored.iter().filter(|id| open != Some(id)) {
            if path(&self.folder, id, ENDING).exists() {
                continue;
            }
            // It may have come into the store meanwhile.
            let standing = self.standing.lock().expect(NO_PANIC);
            let Some(sums) = standing.unstored.get(id).cloned() else { continue };
            drop(standing);
            let folder = self.folder.display();
            match self.write_again(id, &sums) {
                Ok(()) => {
                    tracing::warn!(id, %folder, "a journal of usage was removed, and is written again");
                }
                Err(error) => {
                    tracing::error!(%error, id, %folder, "a journal of usage was removed, and is kept in memory until it can be written again");
                }
            }
        }
    }

    fn write_again(&self, id: &str, sums: &Sums) -> io::Result<()> {
        self.make_folder()?;
        create(&self.folder, id, &lines(sums.entries())?).map(drop)
    }

    /// Makes the folder again where it was removed. Where it is away with the store, what is written here would be lost.
    fn make_folder(&self) -> io::Result<()> {
        if self.store.is_away_with(&self.folder) {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the store's folder is away"));
        }
        fs::create_dir_all(&self.folder)
    }

    /// Writes what is behind, as a whole or not at all.
    fn write(&mut self) -> io::Result<()> {
        let lines = lines(self.behind.iter())?;
        if self.open.is_none() {
            self.make_folder()?;
            self.open = Some(Open::create(&self.folder)?);
        }
        self.open.as_mut().map_or(Ok(()), |open| open.append(&lines))
    }

    /// What is behind takes no more memory than there are accounts and hours.
    fn condense(&mut self) {
        if self.behind.len() < BATCH {
            return;
        }
        let mut sums = Sums::default();
        self.behind.drain(..).for_each(|entry| sums.add(&entry));
        self.behind = sums.entries().collect();
    }

    /// Makes lines that are older than this outlive the system.
    fn sync(&mut self, age: Duration) {
        let Some(open) = &mut self.open else { return };
        if open.unsynced.is_some_and(|since| since.elapsed() >= age) {
            match open.file.sync_data() {
                Ok(()) => open.unsynced = None,
                Err(error) => tracing::error!(%error, "usage does not reach the disk"),
            }
        }
    }
}

impl Open {
    fn create(folder: &Path) -> io::Result<Self> {
        let number = getrandom::u64().map_err(io::Error::other)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let id = format!("{now:012}-{number:016x}");
        let file = create(folder, &id, &[])?;
        Ok(Self { file, id, len: 0, torn: false, unsynced: None })
    }

    /// No name leads to it any more.
    fn is_removed(&self) -> bool {
        self.file.metadata().is_ok_and(|meta| meta.nlink() == 0)
    }

    /// This path leads to it.
    fn is_at(&self, path: &Path) -> bool {
        let mark = |meta: fs::Metadata| (meta.dev(), meta.ino());
        let own = self.file.metadata().map(mark);
        own.is_ok_and(|own| path.metadata().is_ok_and(|found| mark(found) == own))
    }

    fn place(&self, folder: &Path) -> PathBuf {
        path(folder, &self.id, ENDING)
    }

    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        self.mend()?;
        if let Err(error) = self.file.write_all(lines) {
            self.torn = true;
            // So that no part of it counts. Where that fails, nothing is written behind it.
            drop(self.mend());
            return Err(error);
        }
        self.len += lines.len() as u64;
        self.unsynced.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// Takes back what a failed write has left.
    fn mend(&mut self) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.len)?;
            self.file.seek(io::SeekFrom::Start(self.len))?;
            self.torn = false;
        }
        Ok(())
    }
}

/// One line for each.
fn lines<E: std::borrow::Borrow<Entry>>(entries: impl Iterator<Item = E>) -> io::Result<Vec<u8>> {
    let mut lines = Vec::new();
    for entry in entries {
        serde_json::to_writer(&mut lines, entry.borrow())?;
        lines.push(b'\n');
    }
    Ok(lines)
}

fn path(folder: &Path, id: &str, ending: &str) -> PathBuf {
    folder.join(id).with_extension(ending)
}

/// Makes a journal that has these lines, and that nobody else takes as long as it is open.
fn create(folder: &Path, id: &str, lines: &[u8]) -> io::Result<File> {
    let (unlocked, place) = (path(folder, id, UNLOCKED), path(folder, id, ENDING));
    let mut file = File::create(&unlocked)?;
    // Before it has the name under which others would take it for one that nobody writes to.
    file.lock()?;
    file.write_all(lines)?;
    file.sync_all()?;
    fs::rename(unlocked, place)?;
    File::open(folder)?.sync_all()?;
    Ok(file)
}

/// When a journal of this name was begun, in unix seconds.
pub(super) fn created(id: &str) -> Option<u64> {
    id.split_once('-')?.0.parse().ok()
}

/// All journals of a folder that nobody writes to. One that cannot be read stays where it is, and the others are found.
pub(super) fn closed(folder: &Path) -> io::Result<Vec<Closed>> {
    let mut found = Vec::new();
    for entry in folder.read_dir()? {
        let path = entry?.path();
        match Closed::take(path.clone()) {
            Ok(closed) => found.extend(closed),
            // Another process has put it into the store.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let path = path.display();
                tracing::error!(%error, %path, "a journal of usage is not read, and left where it is");
            }
        }
    }
    Ok(found)
}

impl Closed {
    /// `None` for what is no journal, and for one that somebody writes to.
    fn take(path: PathBuf) -> io::Result<Option<Self>> {
        let ending = path.extension().and_then(|ending| ending.to_str());
        let id = path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
        let (Some(ending @ (ENDING | UNLOCKED)), Some(id)) = (ending, id) else { return Ok(None) };
        let mut file = File::options().read(true).write(true).open(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        if ending == UNLOCKED {
            remove_old(&path, &file);
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let sums = read(&id, &bytes)?;
        Ok(Some(Self { id, path, sums, lock: file }))
    }
}

/// Removes what a process has left that died before it had locked its file.
fn remove_old(path: &Path, file: &File) {
    let age = file.metadata().and_then(|meta| meta.modified()).ok();
    let age = age.and_then(|at| SystemTime::now().duration_since(at).ok());
    if age.is_some_and(|age| age > Duration::from_mins(1)) {
        // Nothing is lost where it stays.
        let _ = fs::remove_file(path);
    }
}

/// All whole lines. What follows the last may be torn: nobody was told that it was written. A whole line that is not understood
/// was written by a newer chorus, or is damaged; the rest of such a journal is not taken for all of it.
fn read(id: &str, bytes: &[u8]) -> io::Result<Sums> {
    let mut sums = Sums::default();
    for (number, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        if !line.ends_with(b"\n") {
            tracing::warn!(journal = id, "a journal of usage ends in the middle of a line");
            break;
        }
        let entry = serde_json::from_slice(line).map_err(|why| {
            let number = number + 1;
            let why = format!("its line {number} is damaged, or of a newer chorus: {why}");
            io::Error::new(io::ErrorKind::InvalidData, why)
        })?;
        sums.add(&entry);
    }
    Ok(sums)
}
