//! How versions come, which one is active, and what a change may expect.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;

use super::*;

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
