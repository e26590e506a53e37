//! What is refused leaves nothing, and what there is no room for is refused.

use super::*;

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
