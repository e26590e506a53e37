//! Stores that lack something, and copies that are made while others write.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use futures_util::{FutureExt as _, future, future::BoxFuture};

use super::{
    super::{Adapters, Expected, Folder, Room, Target, Terms, Trial, Unproved, fixture},
    *,
};
use crate::{
    lora::{Extras, Lease},
    store::Fault as StoreFault,
};

const ROOM: usize = 1 << 20;
const ME: TenantId = TenantId::DEFAULT;

struct Works;

impl Trial for Works {
    fn probe(&self, _: Lease) -> BoxFuture<'_, Result<(), Unproved>> {
        future::ready(Ok(())).boxed()
    }

    fn rehearse(
        &self,
        _: Lease,
        _: Arc<Extras>,
    ) -> BoxFuture<'_, Result<Option<String>, Unproved>> {
        future::ready(Ok(None)).boxed()
    }
}

async fn open(store: &Store) -> Adapters {
    fixture::open(Folder::empty(), store.clone(), ROOM).await
}

fn name(text: &str) -> AdapterName {
    AdapterName::parse(text).unwrap()
}

async fn put(adapters: &Adapters, text: &str, value: f32) {
    let (config, weights) = fixture::adapter(2, value);
    let mut upload = adapters.upload();
    for (part, bytes) in [(Part::Config, config.as_bytes()), (Part::Weights, &weights)] {
        upload.begin(part).await.unwrap();
        upload.write(part, bytes).await.unwrap();
    }
    let name = name(text);
    let target = Target { tenant: ME, name: &name, by: "me" };
    let terms = Terms { expected: &Expected::Anything, activate: true, room: Room::default() };
    adapters.put(target, upload, &terms, &Works).await.unwrap();
}

async fn remove(adapters: &Adapters, text: &str) {
    let name = name(text);
    let target = Target { tenant: ME, name: &name, by: "me" };
    adapters.remove(target, None, &Expected::Anything).await.unwrap();
}

fn quiet(_: usize, _: usize) {}

/// The files of a name's newest version.
async fn files(store: &Store, text: &str) -> [BlobKey; 2] {
    let mut fold = Fold::default();
    fold.take_in(store).await.unwrap();
    let mut references = fold.references().into_iter().rev();
    let mut key = |part| {
        let found = references.find(|one| one.name.as_str() == text && one.part == part);
        found.unwrap().blob.key
    };
    [key(Part::Weights), key(Part::Config)]
}

#[tokio::test]
async fn what_a_version_lacks_is_named() {
    let (store, _) = Store::faulty();
    assert_eq!(inspect(&store, Depth::Bytes).await.unwrap(), Inventory::default());
    let adapters = open(&store).await;
    put(&adapters, "gone", 0.1).await;
    put(&adapters, "short", 0.2).await;
    put(&adapters, "spoilt", 0.3).await;
    put(&adapters, "whole", 0.4).await;
    put(&adapters, "removed", 0.5).await;
    remove(&adapters, "removed").await;
    let inventory = inspect(&store, Depth::Bytes).await.unwrap();
    assert_eq!((inventory.records, inventory.versions), (6, 4));
    assert_eq!((inventory.faults.len(), inventory.unused.len()), (0, 0));
    assert!(inventory.broken.is_none() && inventory.tenants.contains(&ME));

    let [gone, _] = files(&store, "gone").await;
    store.erase_blob(&gone).await.unwrap();
    let [short, _] = files(&store, "short").await;
    store.put_back(&short, 3, &b"abc"[..]).await.unwrap();
    let [spoilt, _] = files(&store, "spoilt").await;
    let mut bytes = fixture::adapter(2, 0.3).1;
    bytes[0] ^= 1;
    store.put_back(&spoilt, bytes.len() as u64, &*bytes).await.unwrap();
    let stray = store.put_blob([7; 32], 3, &b"abc"[..]).await.unwrap();

    let inventory = inspect(&store, Depth::Bytes).await.unwrap();
    let wanted = bytes.len() as u64;
    let found: Vec<_> =
        inventory.faults.iter().map(|one| (one.name.as_str(), one.part, one.flaw)).collect();
    assert_eq!(
        found,
        [
            ("gone", Part::Weights, Flaw::Missing),
            ("short", Part::Weights, Flaw::Length { wanted, found: 3 }),
            ("spoilt", Part::Weights, Flaw::Bytes)
        ]
    );
    assert_eq!(inventory.unused, [(stray, 3)]);
    let inventory = inspect(&store, Depth::Lengths).await.unwrap();
    assert_eq!(inventory.faults.len(), 2, "bytes are not looked at");
}

#[tokio::test]
async fn a_copy_has_all_and_goes_on_where_it_was() {
    let (from, to) = (Store::faulty().0, Store::faulty().0);
    let adapters = open(&from).await;
    put(&adapters, "sql", 0.1).await;
    put(&adapters, "law", 0.2).await;
    let done = Mutex::new(Vec::new());
    let copied = copy(&from, &to, &|at, of| done.lock().unwrap().push((at, of))).await.unwrap();
    // The config is the same bytes, and one file.
    assert_eq!((copied.records, copied.files, copied.faults.len()), (2, 3, 0));
    assert_eq!(done.into_inner().unwrap(), [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]);
    assert_eq!(
        inspect(&to, Depth::Bytes).await.unwrap(),
        inspect(&from, Depth::Bytes).await.unwrap()
    );
    put(&adapters, "sql", 0.3).await;
    let copied = copy(&from, &to, &quiet).await.unwrap();
    assert_eq!((copied.records, copied.files), (1, 1));
    assert_eq!(copy(&from, &to, &quiet).await.unwrap(), Copied::default());
    let copy_serves = open(&to).await;
    assert_eq!(copy_serves.list(ME), adapters.list(ME));
}

#[tokio::test]
async fn a_copy_that_was_written_to_is_not_written_over() {
    let (from, to) = (Store::faulty().0, Store::faulty().0);
    let adapters = open(&from).await;
    put(&adapters, "sql", 0.1).await;
    copy(&from, &to, &quiet).await.unwrap();
    put(&open(&to).await, "law", 0.2).await;
    for _ in 0..2 {
        let refused = copy(&from, &to, &quiet).await.unwrap_err();
        assert!(matches!(refused, NotCopied::Diverged { .. }), "{refused}");
        put(&adapters, "law", 0.2).await;
    }
}

#[tokio::test]
async fn what_is_removed_while_it_is_copied_is_not_missed() {
    let (from, to) = (Store::faulty().0, Store::faulty().0);
    let adapters = open(&from).await;
    put(&adapters, "first", 0.1).await;
    put(&adapters, "second", 0.2).await;
    let changed = AtomicUsize::new(0);
    // Between the first file and the second another server removes what is still to be copied, and takes something in.
    let meanwhile = |at: usize, _: usize| {
        if at == 2 && changed.fetch_add(1, Ordering::Relaxed) == 0 {
            let adapters = adapters.clone();
            let change = async move {
                remove(&adapters, "second").await;
                put(&adapters, "third", 0.3).await;
            };
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let runtime =
                        tokio::runtime::Builder::new_current_thread().enable_all().build();
                    runtime.unwrap().block_on(change);
                });
            });
        }
    };
    let copied = copy(&from, &to, &meanwhile).await.unwrap();
    assert_eq!(copied.faults, []);
    let inventory = inspect(&to, Depth::Bytes).await.unwrap();
    assert_eq!((inventory.records, inventory.versions, inventory.faults.len()), (4, 2, 0));
}

#[tokio::test]
async fn what_the_store_has_lost_is_told_and_the_rest_is_copied() {
    let (from, to) = (Store::faulty().0, Store::faulty().0);
    let adapters = open(&from).await;
    put(&adapters, "lost", 0.1).await;
    put(&adapters, "kept", 0.2).await;
    let [lost, _] = files(&from, "lost").await;
    from.erase_blob(&lost).await.unwrap();
    let copied = copy(&from, &to, &quiet).await.unwrap();
    let faults: Vec<_> = copied.faults.iter().map(|one| (one.name.as_str(), one.flaw)).collect();
    assert_eq!(faults, [("lost", Flaw::Missing)]);
    assert_eq!((copied.records, copied.files), (2, 2));
}

#[tokio::test]
async fn a_copy_that_is_broken_off_is_gone_on_with() {
    let from = Store::faulty().0;
    let adapters = open(&from).await;
    for number in 0..5_u8 {
        put(&adapters, &format!("a{number}"), f32::from(number) / 10.0 + 0.1).await;
    }
    let (to, faults) = Store::faulty();
    // Six files are put first, then five records.
    for done in [2, 3, 3] {
        (0..done).for_each(|_| faults.next_put(StoreFault::None));
        faults.next_put(StoreFault::Full);
        let broken = copy(&from, &to, &quiet).await.unwrap_err();
        assert!(matches!(broken, NotCopied::To(StoreError::Full { .. })), "{done}: {broken}");
        faults.none();
        let inventory = inspect(&to, Depth::Bytes).await.unwrap();
        assert_eq!(inventory.faults, [], "no record comes before its files");
    }
    copy(&from, &to, &quiet).await.unwrap();
    assert_eq!(inspect(&to, Depth::Bytes).await.unwrap().versions, 5);
}
