//! A store that is down, loses answers or files, or has damaged ones.

use super::*;
use crate::store::Fault;

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
