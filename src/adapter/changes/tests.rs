//! Changes on a store in memory that can be made to fail, and on a directory.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{
    FutureExt as _, TryStreamExt as _,
    future::{BoxFuture, join_all},
};
use serde_json::json;

use super::{
    super::{
        Folder, Kept, LoadError, NotLent, Room, Terms, Trial, Unproved, Upload, Wanted, fixture,
    },
    *,
};
use crate::{
    lora::{Digest, Extras, Lease, Matrices},
    store::{Fault, Location, Store},
    tenant::{Quota, TenantName},
};

const ME: TenantId = TenantId::DEFAULT;
const ROOM: usize = 1 << 20;

/// Says the same of every adapter, and in answer to every smoke test.
struct Verdict(Result<(), Unproved>, &'static str);

impl Trial for Verdict {
    fn probe(&self, _: Lease) -> BoxFuture<'_, Result<(), Unproved>> {
        future::ready(self.0.clone()).boxed()
    }

    fn rehearse(
        &self,
        _: Lease,
        extras: Arc<Extras>,
    ) -> BoxFuture<'_, Result<Option<String>, Unproved>> {
        let answer = extras.smoke_test.as_ref().map(|_| self.1.to_owned());
        future::ready(Ok(answer)).boxed()
    }
}

const GOOD: Verdict = says("Ahoy");

const fn says(answer: &'static str) -> Verdict {
    Verdict(Ok(()), answer)
}

fn name(text: &str) -> AdapterName {
    AdapterName::parse(text).unwrap()
}

fn target(name: &AdapterName) -> Target<'_> {
    Target { tenant: ME, name, by: "me" }
}

async fn open(store: &Store) -> Adapters {
    fixture::open(Folder::empty(), store.clone(), ROOM).await
}

/// An upload of the fixture's adapter of rank 2 with this value.
async fn arrived(adapters: &Adapters, value: f32) -> Upload {
    received(adapters, fixture::adapter(2, value)).await
}

async fn received(adapters: &Adapters, (config, weights): (String, Vec<u8>)) -> Upload {
    let mut upload = adapters.upload();
    for (part, bytes) in [(Part::Config, config.as_bytes()), (Part::Weights, &weights)] {
        upload.begin(part).await.unwrap();
        upload.write(part, bytes).await.unwrap();
    }
    upload
}

fn digest(value: f32) -> Digest {
    let (config, weights) = fixture::adapter(2, value);
    Digest::of(config.as_bytes(), &weights)
}

fn terms(expected: &Expected) -> Terms<'_> {
    Terms { expected, activate: true, room: Room::default() }
}

async fn put_if(
    adapters: &Adapters,
    text: &str,
    value: f32,
    expected: &Expected,
) -> Result<Kept, NotChanged> {
    let upload = arrived(adapters, value).await;
    adapters.put(target(&name(text)), upload, &terms(expected), &GOOD).await
}

async fn put(adapters: &Adapters, text: &str, value: f32) -> Result<Kept, NotChanged> {
    put_if(adapters, text, value, &Expected::Anything).await
}

/// Version and content that a text stands for.
fn resolve(adapters: &Adapters, text: &str) -> Option<(u32, Digest)> {
    let revision = adapters.resolve(ME, &Wanted::parse(text).unwrap(), None)?;
    Some((revision.version, revision.digest))
}

async fn lease(adapters: &Adapters, text: &str) -> Result<Lease, NotLent> {
    adapters.lease(ME, &adapters.resolve(ME, &Wanted::parse(text).unwrap(), None).unwrap()).await
}

/// How many there are once what nobody waits for is done.
async fn blobs(store: &Store) -> usize {
    tokio::time::sleep(Duration::from_millis(20)).await;
    store.blobs(Duration::ZERO).await.unwrap().len()
}

#[tokio::test]
async fn what_is_acknowledged_is_there_after_a_restart() {
    let root = tempfile::TempDir::new().unwrap();
    let store = Store::open(&Location::Folder(root.path().to_owned())).await.unwrap();
    let adapters = open(&store).await;
    let kept = put(&adapters, "sql", 0.5).await.unwrap();
    assert!(kept.is_new && kept.card.active && kept.card.compatible);
    assert_eq!((kept.card.revision.version, kept.card.revision.digest), (1, digest(0.5)));
    assert_eq!(lease(&adapters, "sql").await.unwrap().digest(), digest(0.5));
    put(&adapters, "sql", 0.25).await.unwrap();
    put(&adapters, "law", 0.5).await.unwrap();
    let store = Store::open(&Location::Folder(root.path().to_owned())).await.unwrap();
    let again = open(&store).await;
    assert_eq!(resolve(&again, "sql"), Some((2, digest(0.25))));
    assert_eq!(resolve(&again, "sql@v1"), Some((1, digest(0.5))));
    for (text, value) in [("sql", 0.25), ("sql@v1", 0.5), ("law", 0.5)] {
        assert_eq!(lease(&again, text).await.unwrap().digest(), digest(value), "{text}");
    }
    assert_eq!(again.list(ME), {
        let names = ["law", "sql"].map(|text| again.card(ME, &name(text)).unwrap());
        names.to_vec()
    });
}

#[tokio::test]
async fn the_same_bytes_are_the_same_version() {
    let store = Store::faulty().0;
    let adapters = open(&store).await;
    put(&adapters, "sql", 0.5).await.unwrap();
    put(&adapters, "sql", 0.25).await.unwrap();
    let kept = put(&adapters, "sql", 0.5).await.unwrap();
    assert_eq!((kept.is_new, kept.card.revision.version, kept.card.active), (false, 1, true));
    assert_eq!(resolve(&adapters, "sql"), Some((1, digest(0.5))));
    let law = put(&adapters, "law", 0.5).await.unwrap();
    assert_eq!((law.is_new, law.card.revision.version), (true, 1));
    // Two weights and one config, however many versions have them.
    assert_eq!(blobs(&store).await, 3);
}

#[tokio::test]
async fn without_activation_a_version_waits() {
    let store = Store::faulty().0;
    let adapters = open(&store).await;
    put(&adapters, "sql", 0.5).await.unwrap();
    let upload = arrived(&adapters, 0.25).await;
    let name = name("sql");
    let kept = adapters
        .put(target(&name), upload, &Terms { activate: false, ..terms(&Expected::Anything) }, &GOOD)
        .await;
    assert!(!kept.unwrap().card.active);
    assert_eq!(resolve(&adapters, "sql"), Some((1, digest(0.5))));
    adapters.activate(target(&name), (2, None), &Expected::Active(vec![1])).await.unwrap();
    assert_eq!(resolve(&adapters, "sql"), Some((2, digest(0.25))));
    let rollback = adapters.activate(target(&name), (1, None), &Expected::Active(vec![1])).await;
    assert!(matches!(rollback, Err(NotChanged::Stale { active: Some(2) })), "{rollback:?}");
    adapters.activate(target(&name), (1, None), &Expected::Anything).await.unwrap();
    assert_eq!(resolve(&adapters, "sql"), Some((1, digest(0.5))));
    let missing = adapters.activate(target(&name), (3, None), &Expected::Anything).await;
    assert!(matches!(missing, Err(NotChanged::NoVersion(3))), "{missing:?}");
}

#[tokio::test]
async fn things_must_stand_as_expected() {
    let store = Store::faulty().0;
    let adapters = open(&store).await;
    let stale = |result: Result<Kept, NotChanged>| matches!(result, Err(NotChanged::Stale { .. }));
    assert!(stale(put_if(&adapters, "sql", 0.5, &Expected::There).await));
    assert!(stale(put_if(&adapters, "sql", 0.5, &Expected::Active(vec![1])).await));
    put_if(&adapters, "sql", 0.5, &Expected::New).await.unwrap();
    assert!(stale(put_if(&adapters, "sql", 0.25, &Expected::New).await));
    assert!(stale(put_if(&adapters, "sql", 0.5, &Expected::New).await), "the same bytes too");
    put_if(&adapters, "sql", 0.25, &Expected::Active(vec![7, 1])).await.unwrap();
    assert!(stale(put_if(&adapters, "sql", 0.75, &Expected::Active(vec![1])).await));
    assert_eq!(blobs(&store).await, 3, "what was refused is erased");
    let early = adapters.expect(target(&name("sql")), &Expected::New).await;
    assert!(matches!(early, Err(NotChanged::Stale { active: Some(2) })), "{early:?}");
}

/// Of writers that expect the same version each round has one that wins, on one server or two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_fifty_writers_one_wins() {
    let store = Store::faulty().0;
    let servers = [open(&store).await, open(&store).await];
    put(&servers[0], "sql", 0.5).await.unwrap();
    for round in 1..=6u32 {
        let won = AtomicUsize::new(0);
        let write = async |writer: u32| {
            let value = 1.0 + (round * 100 + writer) as f32 / 1024.0;
            let server = &servers[writer as usize % 2];
            match put_if(server, "sql", value, &Expected::Active(vec![round])).await {
                Ok(kept) => {
                    assert_eq!(kept.card.revision.version, round + 1);
                    won.fetch_add(1, Ordering::Relaxed);
                }
                Err(NotChanged::Stale { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        };
        join_all((0..50).map(write)).await;
        assert_eq!(won.into_inner(), 1, "round {round}");
    }
    assert_eq!(blobs(&store).await, 8, "a config and seven weights");
}

#[tokio::test]
async fn servers_on_one_store_see_each_others_changes() {
    let store = Store::faulty().0;
    let (one, two) = (open(&store).await, open(&store).await);
    put(&one, "sql", 0.5).await.unwrap();
    assert_eq!(resolve(&two, "sql"), None);
    assert!(two.seek(ME, &name("sql")).await.unwrap());
    assert_eq!(lease(&two, "sql").await.unwrap().digest(), digest(0.5));
    put(&two, "sql", 0.25).await.unwrap();
    one.refresh().await.unwrap();
    assert_eq!(resolve(&one, "sql"), Some((2, digest(0.25))));
    one.remove(target(&name("sql")), None, &Expected::Anything).await.unwrap();
    two.refresh().await.unwrap();
    assert_eq!(resolve(&two, "sql"), None);
    assert_eq!(two.stats().resident, 0, "its memory is given back there too");
}

#[tokio::test]
async fn a_record_of_a_newer_release_is_waited_for() {
    let root = tempfile::TempDir::new().unwrap();
    let store = Store::open(&Location::Folder(root.path().to_owned())).await.unwrap();
    let adapters = open(&store).await;
    put(&adapters, "sql", 0.5).await.unwrap();
    assert!(!adapters.is_outdated());
    let (mut log, _) = Log::<serde_json::Value>::open(&store, "adapters").await.unwrap();
    let newer = json!({"at": 1, "by": "me", "tenant": ME, "name": "sql", "change": {"forked": {}}});
    log.append(newer).await.unwrap();
    let refused = adapters.refresh().await.unwrap_err();
    assert!(matches!(refused, StoreError::Damaged { .. }), "{refused}");
    assert!(adapters.is_outdated());
    assert!(put(&adapters, "law", 0.5).await.is_err());
    // As an upgrade would: now all is understood.
    std::fs::remove_file(root.path().join("logs/adapters/00000000000000000002.json")).unwrap();
    adapters.refresh().await.unwrap();
    assert!(!adapters.is_outdated());
}

#[tokio::test]
async fn who_is_overtaken_by_a_newer_release_notices() {
    let (store, faults) = Store::faulty();
    let adapters = open(&store).await;
    let (mut log, _) = Log::<serde_json::Value>::open(&store, "adapters").await.unwrap();
    log.append(json!("newer")).await.unwrap();
    faults.down();
    let silent = adapters.refresh().await.unwrap_err();
    assert!(matches!(silent, StoreError::Unavailable { .. }), "{silent}");
    assert!(!adapters.is_outdated(), "nothing is known of the records");
    faults.up();
    put(&adapters, "sql", 0.5).await.unwrap_err();
    assert!(adapters.is_outdated());
    faults.down();
    adapters.refresh().await.unwrap_err();
    assert!(adapters.is_outdated(), "it is not understood for being out of reach");
}

#[tokio::test]
async fn the_active_bytes_uploaded_again_end_a_canary() {
    let adapters = open(&Store::faulty().0).await;
    put(&adapters, "sql", 0.25).await.unwrap();
    put(&adapters, "sql", 0.5).await.unwrap();
    let name = name("sql");
    let canary = async || {
        adapters.activate(target(&name), (1, Some(20)), &Expected::Anything).await.unwrap();
        adapters.card(ME, &name).unwrap().canary
    };
    assert_eq!(canary().await, Some(Canary { version: 1, percent: 20 }));
    let upload = arrived(&adapters, 0.5).await;
    let terms = Terms { activate: false, ..terms(&Expected::Anything) };
    let kept = adapters.put(target(&name), upload, &terms, &GOOD).await.unwrap();
    assert!(kept.card.active && adapters.card(ME, &name).unwrap().canary.is_some());
    let kept = put(&adapters, "sql", 0.5).await.unwrap();
    assert_eq!((kept.is_new, kept.card.active, kept.card.canary), (false, true, None));
    assert_eq!(adapters.card(ME, &name).unwrap().canary, None);
}

#[tokio::test]
async fn what_is_refused_leaves_nothing() {
    let store = Store::faulty().0;
    let adapters = open(&store).await;
    let name = name("sql");
    for verdict in [Unproved::NoEffect, Unproved::NotFinite, Unproved::NotNow(String::new())] {
        let upload = arrived(&adapters, 0.5).await;
        let trial = Verdict(Err(verdict.clone()), "");
        let refused =
            adapters.put(target(&name), upload, &terms(&Expected::Anything), &trial).await;
        let Err(NotChanged::Unfit(Unfit::Unproved(why))) = refused else { panic!("{refused:?}") };
        assert_eq!(why, verdict);
    }
    let mut upload = adapters.upload();
    for (part, bytes) in [(Part::Config, b"{}"), (Part::Weights, b"no")] {
        upload.begin(part).await.unwrap();
        upload.write(part, bytes).await.unwrap();
    }
    let refused = adapters.put(target(&name), upload, &terms(&Expected::Anything), &GOOD).await;
    assert!(matches!(refused, Err(NotChanged::Unfit(Unfit::Refused(_)))), "{refused:?}");
    let refused =
        adapters.put(target(&name), adapters.upload(), &terms(&Expected::Anything), &GOOD).await;
    assert!(matches!(refused, Err(NotChanged::Unreceived(_))), "{refused:?}");
    assert_eq!(resolve(&adapters, "sql"), None);
    assert_eq!(blobs(&store).await, 0);
}

#[tokio::test]
async fn files_that_the_store_has_lost_are_put_back_by_whoever_has_them() {
    let store = Store::faulty().0;
    let adapters = open(&store).await;
    put(&adapters, "one", 0.5).await.unwrap();
    for (text, is_new) in [("two", true), ("one", false)] {
        for key in store.blobs(Duration::ZERO).await.unwrap() {
            store.erase_blob(&key).await.unwrap();
        }
        assert_eq!(put(&adapters, text, 0.5).await.unwrap().is_new, is_new);
        let again = open(&store).await;
        for text in ["one", "two"] {
            assert_eq!(lease(&again, text).await.unwrap().digest(), digest(0.5), "{text}");
        }
        assert_eq!(blobs(&store).await, 2);
    }
}

#[tokio::test]
async fn what_somebody_else_does_with_the_same_bytes_is_not_told() {
    let store = Store::faulty().0;
    let adapters = open(&store).await;
    put(&adapters, "one", 0.5).await.unwrap();
    let running = lease(&adapters, "one").await.unwrap();
    drop(lease(&adapters, "one").await.unwrap());
    let upload = arrived(&adapters, 0.5).await;
    let two = name("two");
    let theirs = Target { tenant: TenantId::OTHER, ..target(&two) };
    let card = adapters.put(theirs, upload, &terms(&Expected::Anything), &GOOD).await.unwrap().card;
    assert_eq!((card.resident, card.leases, card.hits, card.last_used), (false, 0, 0, None));
    let card = adapters.card(ME, &name("one")).unwrap();
    assert_eq!((card.resident, card.leases, card.hits), (true, 1, 2));
    drop(running);
    assert_eq!(adapters.card(ME, &name("one")).unwrap().leases, 0);
}

#[tokio::test]
async fn an_upload_asks_no_more_of_the_store_where_somebody_else_has_the_same_bytes() {
    let (store, faults) = Store::faulty();
    let adapters = open(&store).await;
    put(&adapters, "one", 0.5).await.unwrap();
    put(&adapters, "one", 0.25).await.unwrap();
    let mut asked = Vec::new();
    for (text, value) in [("new", 0.125), ("same", 0.5)] {
        let (upload, name) = (arrived(&adapters, value).await, name(text));
        let theirs = Target { tenant: TenantId::OTHER, ..target(&name) };
        blobs(&store).await;
        let before = faults.asked();
        adapters.put(theirs, upload, &terms(&Expected::Anything), &GOOD).await.unwrap();
        asked.push(faults.asked() - before);
    }
    assert_eq!(asked[0], asked[1]);
    assert_eq!(blobs(&store).await, 4, "one config and three weights");
}

#[tokio::test]
async fn a_name_without_an_active_version_cannot_be_pinned() {
    let adapters = open(&Store::faulty().0).await;
    let upload = arrived(&adapters, 0.5).await;
    let terms = Terms { activate: false, ..terms(&Expected::Anything) };
    adapters.put(target(&name("sql")), upload, &terms, &GOOD).await.unwrap();
    let refused = adapters.pin(target(&name("sql"))).await;
    assert!(matches!(refused, Err(NotChanged::NotActive)), "{refused:?}");
}

#[tokio::test]
async fn a_tenant_has_as_much_room_as_it_was_given() {
    let store = Store::faulty().0;
    let adapters = open(&store).await;
    let bytes = put(&adapters, "one", 0.5).await.unwrap().card.bytes;
    let put_in = async |text: &str, value: f32, room: Room| {
        let upload = arrived(&adapters, value).await;
        let terms = Terms { room, ..terms(&Expected::Anything) };
        adapters.put(target(&name(text)), upload, &terms, &GOOD).await
    };
    let names = Room { adapters: Some(1), bytes: None };
    let refused = put_in("two", 0.25, names).await;
    assert!(matches!(refused, Err(NotChanged::NoRoomForName(1))), "{refused:?}");
    put_in("one", 0.25, names).await.unwrap();
    let small = Room { adapters: None, bytes: Some(3 * bytes - 1) };
    let refused = put_in("one", 0.75, small).await;
    assert!(matches!(refused, Err(NotChanged::NoRoomForBytes { .. })), "{refused:?}");
    put_in("one", 0.5, small).await.unwrap();
    assert_eq!(blobs(&store).await, 3, "what was refused is erased");
    adapters.remove(target(&name("one")), Some(2), &Expected::Anything).await.unwrap();
    put_in("one", 0.75, small).await.unwrap();
}

#[tokio::test]
async fn an_adapter_larger_than_the_budget_is_refused() {
    let adapters = fixture::open(Folder::empty(), Store::faulty().0, 100).await;
    let refused = put(&adapters, "sql", 0.5).await;
    let Err(NotChanged::Unfit(Unfit::TooLarge { budget: 100, .. })) = refused else {
        panic!("{refused:?}")
    };
}

#[tokio::test]
async fn a_store_that_is_down_fails_what_needs_it_and_nothing_else() {
    let (store, faults) = Store::faulty();
    let adapters = open(&store).await;
    put(&adapters, "warm", 0.5).await.unwrap();
    put(&adapters, "cold", 0.25).await.unwrap();
    drop(lease(&adapters, "warm").await.unwrap());
    faults.down();
    assert_eq!(lease(&adapters, "warm").await.unwrap().digest(), digest(0.5));
    let cold = lease(&adapters, "cold").await.unwrap_err();
    let NotLent::Failed(why) = cold else { panic!("{cold}") };
    assert!(matches!(*why, LoadError::Store(StoreError::Unavailable { .. })), "{why}");
    for result in [
        put(&adapters, "new", 0.75).await.map(drop),
        adapters.remove(target(&name("warm")), None, &Expected::Anything).await.map(drop),
        adapters.activate(target(&name("warm")), (1, None), &Expected::Anything).await.map(drop),
    ] {
        assert!(matches!(result, Err(NotChanged::Store(StoreError::Unavailable { .. }))));
    }
    assert!(adapters.seek(ME, &name("unknown")).await.is_err());
    faults.up();
    put(&adapters, "new", 0.75).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await; // a failure is remembered for a second
    assert_eq!(lease(&adapters, "cold").await.unwrap().digest(), digest(0.25));
}

#[tokio::test]
async fn answers_of_the_store_that_are_lost_change_nothing_twice() {
    let (store, faults) = Store::faulty();
    let adapters = open(&store).await;
    // Config, weights, record.
    for (lost, value) in [(Fault::AnswerLost, 0.5), (Fault::RetriedAfterLoss, 1.5)] {
        (0..2).for_each(|_| faults.next_put(Fault::None));
        faults.next_put(lost);
        put(&adapters, "sql", value).await.unwrap();
        assert_eq!(resolve(&adapters, "sql").unwrap().1, digest(value));
    }
    assert_eq!(adapters.versions(ME, &name("sql")).len(), 2);
    for at in 0..3 {
        for fault in [Fault::RequestLost, Fault::Full] {
            faults.none();
            (0..at).for_each(|_| faults.next_put(Fault::None));
            faults.next_put(fault);
            let failed = put(&adapters, "law", 0.75).await.unwrap_err();
            let is_full = matches!(failed, NotChanged::Store(StoreError::Full { .. }));
            assert_eq!(is_full, fault == Fault::Full, "{failed}");
            assert_eq!(resolve(&adapters, "law"), None, "{fault:?} at {at}");
        }
    }
    faults.none();
    adapters.sweep(Duration::ZERO).await.unwrap();
    assert_eq!(blobs(&store).await, 3, "what was put in vain is swept");
    assert_eq!(lease(&adapters, "sql").await.unwrap().digest(), digest(1.5));
}

#[tokio::test]
async fn what_is_deleted_is_gone_everywhere_and_running_requests_finish() {
    let store = Store::faulty().0;
    let adapters = open(&store).await;
    let sql = name("sql");
    put(&adapters, "sql", 0.5).await.unwrap();
    put(&adapters, "sql", 0.25).await.unwrap();
    let in_use = adapters.remove(target(&sql), Some(2), &Expected::Anything).await;
    assert!(matches!(in_use, Err(NotChanged::InUse(2))), "{in_use:?}");
    let missing = adapters.remove(target(&sql), Some(9), &Expected::Anything).await;
    assert!(matches!(missing, Err(NotChanged::NoVersion(9))), "{missing:?}");
    assert!(!adapters.remove(target(&sql), Some(1), &Expected::Anything).await.unwrap());
    assert_eq!((resolve(&adapters, "sql@v1"), blobs(&store).await), (None, 2));

    let revision = adapters.resolve(ME, &Wanted::parse("sql").unwrap(), None).unwrap();
    let running = adapters.lease(ME, &revision).await.unwrap();
    assert!(adapters.remove(target(&sql), Some(2), &Expected::Anything).await.unwrap());
    assert_eq!((resolve(&adapters, "sql"), blobs(&store).await), (None, 0));
    assert!(matches!(adapters.lease(ME, &revision).await, Err(NotLent::Gone)));
    assert_eq!(running.digest(), digest(0.25));
    assert_eq!(adapters.stats().resident, 1);
    drop(running);
    assert_eq!(adapters.stats().resident, 0);
    let unknown = adapters.remove(target(&sql), None, &Expected::Anything).await;
    assert!(matches!(unknown, Err(NotChanged::Unknown)), "{unknown:?}");
    assert_eq!(put(&adapters, "sql", 0.5).await.unwrap().card.revision.version, 3);
}

#[tokio::test]
async fn records_of_more_memory_than_there_is_let_nothing_be_pinned() {
    let store = Store::faulty().0;
    let adapters = open(&store).await;
    put(&adapters, "law", 0.5).await.unwrap();
    put(&adapters, "sql", 0.25).await.unwrap();
    let (mut log, entries) = Log::<Record>::open(&store, "adapters").await.unwrap();
    let mut vast = entries[1].record.clone();
    let Change::Stored(stored) = &mut vast.change else { panic!("{vast:?}") };
    stored.digest = digest(0.125);
    (stored.version, stored.memory) = (2, usize::MAX);
    log.append(vast.clone()).await.unwrap();
    log.append(Record { change: Change::Pinned, ..vast }).await.unwrap();
    let refused = adapters.pin(target(&name("law"))).await.unwrap_err();
    assert!(matches!(refused, NotChanged::TooMuchPinned { wanted: usize::MAX, .. }), "{refused}");
}

#[tokio::test]
async fn what_is_pinned_stays_in_memory() {
    let store = Store::faulty().0;
    let memory = {
        let adapters = open(&store).await;
        put(&adapters, "sql", 0.5).await.unwrap();
        put(&adapters, "law", 0.25).await.unwrap();
        put(&adapters, "tax", 0.75).await.unwrap().card.memory
    };
    let adapters = fixture::open(Folder::empty(), store.clone(), 2 * memory + memory / 2).await;
    let sql = name("sql");
    adapters.pin(target(&sql)).await.unwrap();
    let until_resident = async || {
        while !adapters.card(ME, &sql).unwrap().resident {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    until_resident().await;
    for _ in 0..3 {
        for text in ["law", "tax"] {
            drop(lease(&adapters, text).await.unwrap());
        }
    }
    let card = adapters.card(ME, &sql).unwrap();
    assert_eq!((card.pinned, card.resident, card.leases), (true, true, 0));
    let refused = adapters.pin(target(&name("law"))).await;
    assert!(matches!(refused, Err(NotChanged::TooMuchPinned { .. })), "{refused:?}");
    assert!(!adapters.unpin(target(&sql)).await.unwrap().pinned);
    adapters.pin(target(&name("law"))).await.unwrap();
    drop(adapters);
    // It is in the records, so a restart keeps to it.
    let adapters = fixture::open(Folder::empty(), store, 3 * memory).await;
    while !adapters.card(ME, &name("law")).unwrap().resident {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn an_adapter_of_another_base_is_refused_until_it_is_validated() {
    let store = Store::faulty().0;
    let old = open(&store).await;
    put(&old, "sql", 0.5).await.unwrap();
    put(&old, "sql", 0.25).await.unwrap();
    let new = fixture::open_on("0ther", Folder::empty(), store.clone(), ROOM).await;
    let sql = name("sql");
    assert!(!new.card(ME, &sql).unwrap().compatible);
    assert!(matches!(lease(&new, "sql").await, Err(NotLent::OtherBase)));
    let moved = new.activate(target(&sql), (1, None), &Expected::Anything).await;
    assert!(matches!(moved, Err(NotChanged::OtherBase(1))), "{moved:?}");
    let failed = new.validate(target(&sql), 2, &Verdict(Err(Unproved::NoEffect), "")).await;
    assert!(matches!(failed, Err(NotChanged::Unfit(_))), "{failed:?}");
    assert!(new.validate(target(&sql), 2, &GOOD).await.unwrap().card.compatible);
    assert_eq!(lease(&new, "sql").await.unwrap().digest(), digest(0.25));
    assert!(matches!(lease(&new, "sql@v1").await, Err(NotLent::OtherBase)));
    // To upload it again is to have it checked.
    put(&new, "sql", 0.5).await.unwrap();
    assert_eq!(lease(&new, "sql").await.unwrap().digest(), digest(0.5));
    old.refresh().await.unwrap();
    assert!(old.card(ME, &sql).unwrap().compatible);
}

/// Uploads an adapter whose smoke test asks for the text `Ahoy`, which it answers with this.
async fn put_tested(adapters: &Adapters, answer: &'static str) -> Result<Kept, NotChanged> {
    let (config, weights) = fixture::adapter(2, 0.5);
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["chorus"] = json!({"smoke_test": {"prompt": "Hello?", "contains": "Ahoy"}});
    let upload = received(adapters, (config.to_string(), weights)).await;
    adapters.put(target(&name("sql")), upload, &terms(&Expected::Anything), &says(answer)).await
}

/// Whether the active version, or the newest, is active, and whether its smoke test passes.
fn standing(adapters: &Adapters) -> (bool, Option<bool>) {
    let card = adapters.card(ME, &name("sql")).unwrap();
    (card.active, card.smoke.map(|smoke| smoke.passed))
}

#[tokio::test]
async fn a_smoke_test_that_failed_on_an_old_base_is_not_failed_for_ever() {
    let store = Store::faulty().0;
    let old = open(&store).await;
    assert!(!put_tested(&old, "Rice").await.unwrap().card.active);
    assert_eq!(standing(&old), (false, Some(false)));
    let new = fixture::open_on("0ther", Folder::empty(), store.clone(), ROOM).await;
    assert_eq!(standing(&new), (false, None), "it was not tried on this base");
    let kept = put_tested(&new, "Ahoy").await.unwrap();
    assert_eq!((kept.is_new, kept.card.active), (false, true));
    assert_eq!(kept.card.smoke.unwrap().answer, "Ahoy");
    assert_eq!(standing(&new), (true, Some(true)));
    let again = fixture::open_on("0ther", Folder::empty(), store, ROOM).await;
    assert_eq!(standing(&again), (true, Some(true)), "it is in the records");
    old.refresh().await.unwrap();
    assert_eq!(standing(&old), (true, Some(false)), "the old base says what it said");
}

#[tokio::test]
async fn a_validation_runs_the_smoke_test_again_and_notes_what_has_changed() {
    let store = Store::faulty().0;
    let adapters = open(&store).await;
    put_tested(&adapters, "Rice").await.unwrap();
    let sql = name("sql");
    let records = async || store.last_record("adapters").await.unwrap();
    for (answer, passes, noted) in
        [("Rice", false, 1), ("Ahoy", true, 2), ("Ahoy", true, 2), ("Rice", false, 3)]
    {
        let card = adapters.validate(target(&sql), 1, &says(answer)).await.unwrap().card;
        assert_eq!((card.compatible, card.smoke.unwrap().passed), (true, passes), "{answer}");
        assert_eq!(records().await, noted, "{answer}");
    }
    // On another base nothing is noted of what fails there.
    let new = fixture::open_on("0ther", Folder::empty(), store.clone(), ROOM).await;
    let failed = new.validate(target(&sql), 1, &says("Rice")).await;
    assert!(matches!(failed, Err(NotChanged::Unfit(Unfit::Smoke { .. }))), "{failed:?}");
    assert_eq!((records().await, new.card(ME, &sql).unwrap().compatible), (3, false));
    let card = new.validate(target(&sql), 1, &says("Ahoy")).await.unwrap().card;
    assert!(card.compatible && card.smoke.unwrap().passed);
}

#[tokio::test]
async fn a_record_says_what_an_adapter_takes_on_servers_of_either_type() {
    for (from, to) in [(Matrices::Native, Matrices::Int8), (Matrices::Int8, Matrices::Native)] {
        let store = Store::faulty().0;
        let writer = fixture::open_as(from, Folder::empty(), store.clone(), ROOM).await;
        let written = put(&writer, "sql", 0.5).await.unwrap().card.memory;
        assert_eq!(lease(&writer, "sql").await.unwrap().bytes(), written);
        let reader = fixture::open_as(to, Folder::empty(), store, ROOM).await;
        let memory = reader.card(ME, &name("sql")).unwrap().memory;
        assert_eq!(written < memory, from == Matrices::Int8, "{written} and {memory}");
        assert_eq!(lease(&reader, "sql").await.unwrap().bytes(), memory);
        assert_eq!(reader.stats().load_failures, 0, "it was known before the load");
    }
}

#[tokio::test]
async fn memory_that_another_version_of_chorus_noted_is_set_right() {
    let store = Store::faulty().0;
    let adapters = open(&store).await;
    let memory = put(&adapters, "sql", 0.5).await.unwrap().card.memory;
    let content = adapters.shared.registry.content(digest(0.5)).unwrap();
    content.set_memory(memory + 64);
    assert_eq!(lease(&adapters, "sql").await.unwrap().bytes(), memory);
    assert_eq!(adapters.card(ME, &name("sql")).unwrap().memory, memory);
    assert_eq!(adapters.stats().resident_bytes, memory);
}

#[tokio::test]
async fn a_tenant_gets_its_own_bytes_back() {
    let root = tempfile::TempDir::new().unwrap();
    fixture::write(&root.path().join("folder"), 2, 0.5);
    let folder = fixture::scan(root.path()).unwrap();
    let adapters = fixture::open(folder, Store::faulty().0, ROOM).await;
    put(&adapters, "stored", 0.5).await.unwrap();
    let (config, weights) = fixture::adapter(2, 0.5);
    for text in ["folder", "stored"] {
        for (part, bytes) in [(Part::Config, config.as_bytes()), (Part::Weights, &weights)] {
            for version in [None, Some(1)] {
                let file = adapters.file(target(&name(text)), version, part).await.unwrap();
                assert_eq!(file.bytes, bytes.len() as u64);
                let pieces: Vec<_> = file.pieces.try_collect().await.unwrap();
                assert!(pieces.concat() == bytes, "{text}");
            }
            let missing = adapters.file(target(&name(text)), Some(2), part).await;
            assert!(matches!(missing, Err(NotChanged::NoVersion(2))), "{missing:?}");
        }
    }
    let unknown = adapters.file(target(&name("none")), None, Part::Config).await;
    assert!(matches!(unknown, Err(NotChanged::Unknown)), "{unknown:?}");
}

#[tokio::test]
async fn an_upload_goes_before_the_folder() {
    let root = tempfile::TempDir::new().unwrap();
    fixture::write(&root.path().join("sql"), 2, 0.5);
    let store = Store::faulty().0;
    let adapters = fixture::open(fixture::scan(root.path()).unwrap(), store.clone(), ROOM).await;
    assert_eq!(put(&adapters, "sql", 0.25).await.unwrap().card.revision.version, 2);
    for _ in 0..2 {
        let adapters =
            fixture::open(fixture::scan(root.path()).unwrap(), store.clone(), ROOM).await;
        assert_eq!(resolve(&adapters, "sql"), Some((2, digest(0.25))));
        assert_eq!(lease(&adapters, "sql@v1").await.unwrap().digest(), digest(0.5));
    }
    adapters.activate(target(&name("sql")), (1, None), &Expected::Anything).await.unwrap();
    assert_eq!(resolve(&adapters, "sql"), Some((1, digest(0.5))), "back to the folder's");
    adapters.remove(target(&name("sql")), None, &Expected::Anything).await.unwrap();
    let adapters = fixture::open(fixture::scan(root.path()).unwrap(), store, ROOM).await;
    assert_eq!(resolve(&adapters, "sql"), None, "what was deleted does not come back");
}

/// It was answered as if it had been kept, and was gone with the folder.
#[tokio::test]
async fn the_folders_own_bytes_uploaded_outlive_the_folder() {
    let root = tempfile::TempDir::new().unwrap();
    fixture::write(&root.path().join("sql"), 2, 0.5);
    let store = Store::faulty().0;
    let adapters = fixture::open(fixture::scan(root.path()).unwrap(), store.clone(), ROOM).await;
    let kept = put(&adapters, "sql", 0.5).await.unwrap();
    assert_eq!((kept.is_new, kept.card.revision.version, kept.card.active), (true, 2, true));
    let again = put(&adapters, "sql", 0.5).await.unwrap();
    assert_eq!((again.is_new, again.card.revision.version), (false, 2), "the store has them now");
    assert_eq!(blobs(&store).await, 2);
    let stored: Vec<_> = adapters.versions(ME, &name("sql")).iter().map(|it| it.stored).collect();
    assert_eq!(stored, [false, true]);
    let without = open(&store).await;
    assert_eq!(resolve(&without, "sql"), Some((2, digest(0.5))));
    assert_eq!(lease(&without, "sql").await.unwrap().digest(), digest(0.5));
}

#[tokio::test]
async fn an_upload_over_a_name_of_the_folder_counts_as_an_adapter() {
    let root = tempfile::TempDir::new().unwrap();
    for text in ["one", "two"] {
        fixture::write(&root.path().join(text), 2, 0.5);
    }
    let folder = fixture::scan(root.path()).unwrap();
    let adapters = fixture::open(folder, Store::faulty().0, ROOM).await;
    let put_in = async |text: &str, value: f32| {
        let upload = arrived(&adapters, value).await;
        let room = Room { adapters: Some(1), bytes: None };
        let terms = Terms { room, ..terms(&Expected::Anything) };
        adapters.put(target(&name(text)), upload, &terms, &GOOD).await
    };
    put_in("one", 0.25).await.unwrap();
    put_in("one", 0.125).await.unwrap();
    let refused = put_in("two", 0.25).await;
    assert!(matches!(refused, Err(NotChanged::NoRoomForName(1))), "{refused:?}");
}

/// Uploads were acknowledged into the empty place where the volume had been, and the log had a gap when it was back.
#[tokio::test]
async fn a_store_whose_folder_goes_away_acknowledges_nothing_and_serves_what_is_in_memory() {
    let root = tempfile::TempDir::new().unwrap();
    let (place, elsewhere) = (root.path().join("store"), root.path().join("elsewhere"));
    let store = Store::open(&Location::Folder(place.clone())).await.unwrap();
    store.id().await.unwrap();
    let adapters = open(&store).await;
    put(&adapters, "warm", 0.5).await.unwrap();
    put(&adapters, "cold", 0.25).await.unwrap();
    drop(lease(&adapters, "warm").await.unwrap());
    std::fs::rename(&place, &elsewhere).unwrap();
    assert_eq!(lease(&adapters, "warm").await.unwrap().digest(), digest(0.5));
    let cold = lease(&adapters, "cold").await.unwrap_err();
    let NotLent::Failed(why) = cold else { panic!("{cold}") };
    assert!(matches!(*why, LoadError::Store(StoreError::Unavailable { .. })), "{why}");
    let new = name("new");
    for result in [
        put(&adapters, "new", 0.75).await.map(drop),
        put(&adapters, "warm", 0.5).await.map(drop),
        adapters.expect(target(&new), &Expected::Anything).await,
        adapters.remove(target(&name("warm")), None, &Expected::Anything).await.map(drop),
        adapters.file(target(&name("warm")), None, Part::Weights).await.map(drop),
        adapters.sweep(Duration::ZERO).await.map(drop).map_err(NotChanged::Store),
    ] {
        let unavailable = matches!(result, Err(NotChanged::Store(StoreError::Unavailable { .. })));
        assert!(unavailable, "{result:?}");
    }
    assert!(adapters.seek(ME, &name("unknown")).await.is_err());
    assert_eq!(resolve(&adapters, "new"), None);
    assert!(!place.exists(), "nothing is made in its place");
    std::fs::rename(&elsewhere, &place).unwrap();
    put(&adapters, "new", 0.75).await.unwrap();
    let again = open(&store).await;
    for (text, value) in [("warm", 0.5), ("cold", 0.25), ("new", 0.75)] {
        assert_eq!(lease(&again, text).await.unwrap().digest(), digest(value), "{text}");
    }
    assert_eq!(store.last_record("adapters").await.unwrap(), 3, "no number is left out");
}

#[tokio::test]
async fn damage_in_the_store_is_found_before_it_is_served() {
    let root = tempfile::TempDir::new().unwrap();
    let store = Store::open(&Location::Folder(root.path().to_owned())).await.unwrap();
    let adapters = open(&store).await;
    put(&adapters, "sql", 0.5).await.unwrap();
    for entry in root.path().join("blobs").read_dir().unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(path, bytes).unwrap();
    }
    let error = lease(&adapters, "sql").await.unwrap_err();
    let NotLent::Failed(why) = error else { panic!("{error}") };
    assert!(matches!(*why, LoadError::Damaged), "{why}");
}

#[tokio::test]
async fn a_failed_load_is_remembered_until_the_files_come_again() {
    let root = tempfile::TempDir::new().unwrap();
    let store = Store::open(&Location::Folder(root.path().to_owned())).await.unwrap();
    let adapters = open(&store).await;
    put(&adapters, "sql", 0.5).await.unwrap();
    for entry in root.path().join("blobs").read_dir().unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    for _ in 0..10 {
        let error = lease(&adapters, "sql").await.unwrap_err();
        assert!(error.is_gone(), "{error}");
    }
    assert_eq!(adapters.stats().loads, 1);
    assert!(!put(&adapters, "sql", 0.5).await.unwrap().is_new, "the same bytes, put back");
    assert_eq!(lease(&adapters, "sql").await.unwrap().digest(), digest(0.5));
}

#[tokio::test]
async fn a_tenants_quota_of_memory_bounds_what_is_loaded_and_pinned_for_it() {
    let adapters = open(&Store::faulty().0).await;
    put(&adapters, "sql", 0.5).await.unwrap();
    let memory = put(&adapters, "law", 0.25).await.unwrap().card.memory;
    let bound = async |bytes: usize| {
        let quota = Quota { resident_max_bytes: Some(bytes as u64), ..Quota::default() };
        let tenant = TenantName::parse("default").unwrap();
        adapters.shared.tenants.set_quota("me", &tenant, quota).await.unwrap();
    };
    let resident = |text| adapters.card(ME, &name(text)).unwrap().resident;
    for text in ["sql", "law"] {
        drop(lease(&adapters, text).await.unwrap());
    }
    assert!(resident("sql") && resident("law"));
    bound(memory + memory / 2).await;
    adapters.remove(target(&name("sql")), None, &Expected::Anything).await.unwrap();
    put(&adapters, "sql", 0.5).await.unwrap();
    drop(lease(&adapters, "sql").await.unwrap());
    assert!(resident("sql") && !resident("law"));
    let (sql, law) = (name("sql"), name("law"));
    let refused = adapters.pin(target(&sql)).await;
    assert!(matches!(refused, Err(NotChanged::TooMuchPinned { .. })), "half of it is not enough");
    bound(2 * memory).await;
    adapters.pin(target(&sql)).await.unwrap();
    assert!(adapters.pin(target(&law)).await.is_err());
    bound(memory - 1).await;
    let refused = lease(&adapters, "law").await.unwrap_err();
    assert!(matches!(refused, NotLent::LargerThanPortion { .. }), "{refused}");
}
