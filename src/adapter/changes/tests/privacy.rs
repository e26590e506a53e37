//! What tenants with the same bytes learn of each other, and get back of their own.

use futures_util::TryStreamExt as _;

use super::*;

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
