//! Adapters that were checked against another base, and smoke tests.

use super::*;

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
