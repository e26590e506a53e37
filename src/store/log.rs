//! An append-only run of records that several servers write.

use std::{
    fmt,
    marker::PhantomData,
    sync::atomic::{AtomicBool, Ordering},
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::{ObjectStore as _, PutMode, path::Path};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{LOGS, Store, StoreError, nonce, payload};

/// Records that are read side by side when a log is opened.
const READERS: usize = 32;

/// Records under consecutive numbers from 1. State is their fold; each server keeps its own, and catches up.
pub struct Log<R> {
    store: Store,
    folder: Path,
    /// The last number that was read or written.
    last: u64,
    /// Whose record that is; none before the first.
    tip: Option<String>,
    /// How often the store had been found in another place when that was last looked for.
    moves: u64,
    records: PhantomData<fn() -> R>,
}

/// One record and its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<R> {
    /// Its place in the order, from 1.
    pub number: u64,
    /// What was written.
    pub record: R,
}

/// What became of a record that was to be the next one.
#[derive(Debug, PartialEq, Eq)]
pub enum Appended<R> {
    /// It is the next one, under this number.
    Written(u64),
    /// It is not written: others wrote these first. Whether it still makes sense is the caller's to say.
    Overtaken(Vec<Entry<R>>),
}

/// Whether a log has a record that this release does not understand, as far as it was read: what comes after that is not
/// known here.
#[derive(Debug, Default)]
pub struct Outdated(AtomicBool);

impl Outdated {
    /// Takes note of how reading the log went, and hands that on.
    pub fn note<T>(&self, read: Result<T, StoreError>) -> Result<T, StoreError> {
        match &read {
            Ok(_) => self.0.store(false, Ordering::Relaxed),
            Err(error @ StoreError::Damaged { .. }) => {
                if !self.0.swap(true, Ordering::Relaxed) {
                    tracing::error!(%error, "no requests are taken until this record is understood: upgrade this server");
                }
            }
            // Nothing was learned of the records.
            Err(_) => {}
        }
        read
    }

    /// It has one.
    pub fn holds(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A record as it is stored.
#[derive(Serialize, Deserialize)]
struct Envelope<R> {
    /// Differs in each attempt to write, so that a writer knows its own record where the answer to the write was lost.
    writer: String,
    record: R,
}

impl<R: Serialize + DeserializeOwned + Send> Log<R> {
    /// Opens the log of this name and reads all that is there.
    pub async fn open(store: &Store, name: &str) -> Result<(Self, Vec<Entry<R>>), StoreError> {
        let mut log = Self::at(store, name);
        store.make_folder(&format!("{LOGS}/{name}"))?;
        let last = store.last_record(name).await?;
        let records = stream::iter(1..=last).map(|number| log.read(number)).buffered(READERS);
        let records: Vec<_> = records.try_collect().await?;
        log.took(last, records.last().map(|(writer, _)| writer.clone()));
        Ok((log, records.into_iter().map(|(_, entry)| entry).collect()))
    }

    /// Reads at most `most` records that come after a number, in order. What somebody has opened is not touched.
    pub async fn page(
        store: &Store,
        name: &str,
        after: u64,
        most: usize,
    ) -> Result<Vec<Entry<R>>, StoreError> {
        let log = Self::at(store, name);
        let end = after.saturating_add(most as u64);
        let numbers = after.saturating_add(1)..end.saturating_add(1);
        let mut records = stream::iter(numbers).map(|number| log.read(number)).buffered(READERS);
        let mut page = Vec::new();
        while let Some(record) = records.next().await {
            match record {
                Ok((_, entry)) => page.push(entry),
                Err(StoreError::NotFound { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(page)
    }

    /// Reads what others have written since, in order.
    pub async fn catch_up(&mut self) -> Result<Vec<Entry<R>>, StoreError> {
        self.check_tip().await?;
        let found = self.after_last().await?;
        Ok(found.into_iter().map(|(_, entry)| entry).collect())
    }

    /// Writes a record as the next one.
    ///
    /// An error leaves open whether it was written; what was is found by the next [`Log::catch_up`].
    pub async fn append(&mut self, record: R) -> Result<Appended<R>, StoreError> {
        self.check_tip().await?;
        let (number, writer) = (self.last + 1, nonce()?);
        let key = self.key(number);
        let envelope = Envelope { writer: writer.clone(), record };
        let bytes =
            serde_json::to_vec(&envelope).map_err(|error| StoreError::damaged(&key, &error))?;
        let put = self.store.objects.put_opts(&key, payload(bytes), PutMode::Create.into());
        match put.await {
            Ok(_) => {
                self.took(number, Some(writer));
                Ok(Appended::Written(number))
            }
            Err(object_store::Error::AlreadyExists { .. }) => self.overtaken(&writer).await,
            Err(error) => {
                let error = StoreError::from_objects(error, &key);
                // The answer may be lost and the record written.
                match self.read(number).await {
                    Ok((theirs, _)) if theirs == writer => {
                        self.took(number, Some(writer));
                        Ok(Appended::Written(number))
                    }
                    _ => Err(error),
                }
            }
        }
    }

    async fn overtaken(&mut self, writer: &str) -> Result<Appended<R>, StoreError> {
        let before = self.last;
        let found = self.after_last().await?;
        if found.first().is_some_and(|(theirs, _)| theirs == writer) {
            // A retry met what the first attempt had written. What came after it is read again by the next.
            self.took(before + 1, Some(writer.to_owned()));
            return Ok(Appended::Written(before + 1));
        }
        Ok(Appended::Overtaken(found.into_iter().map(|(_, entry)| entry).collect()))
    }

    async fn after_last(&mut self) -> Result<Vec<(String, Entry<R>)>, StoreError> {
        let (mut found, mut next) = (Vec::new(), self.last + 1);
        loop {
            match self.read(next).await {
                Ok(record) => found.push(record),
                Err(StoreError::NotFound { .. }) => break,
                Err(error) => return Err(error),
            }
            next += 1;
        }
        if let Some((writer, _)) = found.last() {
            self.took(next - 1, Some(writer.clone()));
        }
        Ok(found)
    }

    /// A store that is found in another place must have what was read last: of an earlier state of it, which somebody has put
    /// there, the next number would not be the next one.
    async fn check_tip(&mut self) -> Result<(), StoreError> {
        self.store.check_home().await?;
        let moves = self.store.moves();
        if moves == self.moves {
            return Ok(());
        }
        if let Some(tip) = &self.tip {
            match self.read(self.last).await {
                Ok((writer, _)) if writer == *tip => {}
                Ok(_) | Err(StoreError::NotFound { .. }) => {
                    let why = format!(
                        "in its place is an earlier state of it, without record {} of {}: start the server again if that is meant",
                        self.last, self.folder
                    );
                    return Err(StoreError::Unavailable { why });
                }
                Err(error) => return Err(error),
            }
        }
        self.moves = moves;
        Ok(())
    }

    async fn read(&self, number: u64) -> Result<(String, Entry<R>), StoreError> {
        let key = self.key(number);
        let bytes = self.store.get(&key).await?;
        let Envelope { writer, record } =
            serde_json::from_slice(&bytes).map_err(|error| StoreError::damaged(&key, &error))?;
        Ok((writer, Entry { number, record }))
    }
}

impl<R> Log<R> {
    fn at(store: &Store, name: &str) -> Self {
        let folder = log_folder(store, name);
        let (store, moves) = (store.clone(), store.moves());
        Self { store, folder, last: 0, tip: None, moves, records: PhantomData }
    }

    /// This record of this writer is the last one that is known here.
    fn took(&mut self, number: u64, writer: Option<String>) {
        (self.last, self.tip) = (number, writer);
    }

    /// The last number that was read or written; 0 before the first.
    pub fn last(&self) -> u64 {
        self.last
    }

    fn key(&self, number: u64) -> Path {
        record_key(&self.folder, number)
    }
}

impl Store {
    /// The greatest number that a record of this log has; 0 where there is none.
    pub async fn last_record(&self, log: &str) -> Result<u64, StoreError> {
        let folder = log_folder(self, log);
        let listed = self.objects.list(Some(&folder));
        let numbers = listed.map_ok(|meta| number_of(&meta.location)).try_filter_map(
            async |number| Ok(number), // what is no record is passed over
        );
        let last = numbers.try_fold(0, async |last, number| Ok(last.max(number))).await;
        last.map_err(|error| StoreError::from_objects(error, &folder))
    }
}

/// Where the records of a log lie.
pub(super) fn log_folder(store: &Store, name: &str) -> Path {
    store.root.clone().join(LOGS).join(name)
}

/// Where one of them lies.
pub(super) fn record_key(folder: &Path, number: u64) -> Path {
    folder.clone().join(format!("{number:020}.json"))
}

impl<R> fmt::Debug for Log<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log")
            .field("folder", &self.folder)
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

/// The number of a record's key.
fn number_of(key: &Path) -> Option<u64> {
    let digits = key.filename()?.strip_suffix(".json")?;
    if digits.len() == 20 { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{
        super::{
            Location,
            faults::{Fault, Faults},
        },
        *,
    };

    type Numbers = Log<u32>;

    fn entries(records: &[u32]) -> Vec<Entry<u32>> {
        (1..).zip(records).map(|(number, record)| Entry { number, record: *record }).collect()
    }

    async fn open(store: &Store) -> (Numbers, Vec<Entry<u32>>) {
        Log::open(store, "numbers").await.unwrap()
    }

    #[tokio::test]
    async fn what_is_appended_is_there_for_all() {
        let (store, _) = Store::faulty();
        let (mut one, none) = open(&store).await;
        assert_eq!((none, one.last()), (vec![], 0));
        let (mut two, _) = open(&store).await;
        assert_eq!(one.append(7).await.unwrap(), Appended::Written(1));
        assert_eq!(one.append(8).await.unwrap(), Appended::Written(2));
        assert_eq!(two.catch_up().await.unwrap(), entries(&[7, 8]));
        assert_eq!(two.catch_up().await.unwrap(), []);
        assert_eq!(open(&store).await.1, entries(&[7, 8]));
    }

    #[tokio::test]
    async fn who_is_overtaken_writes_nothing_and_learns_of_what_was() {
        let (store, _) = Store::faulty();
        let (mut one, _) = open(&store).await;
        let (mut two, _) = open(&store).await;
        one.append(7).await.unwrap();
        assert_eq!(two.append(9).await.unwrap(), Appended::Overtaken(entries(&[7])));
        assert_eq!(two.append(9).await.unwrap(), Appended::Written(2));
        assert_eq!(one.catch_up().await.unwrap(), [Entry { number: 2, record: 9 }]);
    }

    async fn with_fault(fault: Fault) -> (Result<Appended<u32>, StoreError>, Store, Arc<Faults>) {
        let (store, faults) = Store::faulty();
        let (mut log, _) = open(&store).await;
        log.append(7).await.unwrap();
        faults.next_put(fault);
        (log.append(8).await, store, faults)
    }

    #[tokio::test]
    async fn a_lost_answer_is_no_second_record() {
        let (appended, store, _) = with_fault(Fault::AnswerLost).await;
        assert_eq!(appended.unwrap(), Appended::Written(2));
        assert_eq!(open(&store).await.1, entries(&[7, 8]));
    }

    #[tokio::test]
    async fn a_retry_that_meets_its_own_record_has_written_it() {
        let (appended, store, _) = with_fault(Fault::RetriedAfterLoss).await;
        assert_eq!(appended.unwrap(), Appended::Written(2));
        assert_eq!(open(&store).await.1, entries(&[7, 8]));
    }

    #[tokio::test]
    async fn a_request_that_is_lost_changes_nothing() {
        let (appended, store, _) = with_fault(Fault::RequestLost).await;
        assert!(matches!(appended, Err(StoreError::Unavailable { .. })));
        assert_eq!(open(&store).await.1, entries(&[7]));
    }

    #[tokio::test]
    async fn a_record_that_is_damaged_is_named() {
        let root = tempfile::TempDir::new().unwrap();
        let location = Location::Folder(root.path().to_owned());
        let store = Store::open(&location).await.unwrap();
        let (mut log, _) = open(&store).await;
        log.append(7).await.unwrap();
        let file = root.path().join("logs/numbers/00000000000000000001.json");
        std::fs::write(&file, "{").unwrap();
        let error = Numbers::open(&store, "numbers").await.unwrap_err();
        assert!(error.to_string().contains("numbers/00000000000000000001.json"), "{error}");
        std::fs::write(root.path().join("logs/numbers/notes.txt"), "not ours").unwrap();
        std::fs::remove_file(file).unwrap();
        assert_eq!(open(&store).await.1, []);
    }

    #[tokio::test]
    async fn pages_follow_each_other_and_end_with_the_log() {
        let (store, _) = Store::faulty();
        let (mut log, _) = open(&store).await;
        let page = async |after, most| Numbers::page(&store, "numbers", after, most).await.unwrap();
        assert_eq!(page(0, 10).await, []);
        for record in 1..=70 {
            log.append(record).await.unwrap();
        }
        let all = entries(&(1..=70).collect::<Vec<_>>());
        assert_eq!(page(0, 50).await, all[..50]);
        assert_eq!(page(50, 50).await, all[50..]);
        assert_eq!(page(70, 50).await, []);
        assert_eq!(page(3, 0).await, []);
        assert_eq!(page(u64::MAX, 50).await, []);
    }

    #[tokio::test]
    async fn of_many_writers_each_number_has_one() {
        let (store, _) = Store::faulty();
        let write = |record: u32| {
            let store = store.clone();
            async move {
                let (mut log, _) = open(&store).await;
                while let Appended::Overtaken(_) = log.append(record).await.unwrap() {}
            }
        };
        futures_util::future::join_all((0..50).map(write)).await;
        let (log, all) = open(&store).await;
        assert_eq!(log.last(), 50);
        let mut records: Vec<_> = all.into_iter().map(|entry| entry.record).collect();
        records.sort_unstable();
        assert_eq!(records, (0..50).collect::<Vec<_>>());
    }
}
