//! Records that a newer release of chorus has written.

use super::*;

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
