//! Uploads over what the folder has.

use super::*;

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
