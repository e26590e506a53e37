//! What is pinned, what an adapter takes, and what a tenant may have of the memory.

use super::*;
use crate::{
    lora::Matrices,
    tenant::{Quota, TenantName},
};

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
