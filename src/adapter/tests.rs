//! What a folder's adapters are to their tenant, lent and counted.

use std::path::Path;

use tempfile::TempDir;

use super::{fixture, *};

const ME: TenantId = TenantId::DEFAULT;

async fn open(root: &Path, budget: usize) -> Adapters {
    fixture::open(fixture::scan(root).unwrap(), Store::faulty().0, budget).await
}

/// Two adapters of different sizes, and the memory that each takes.
fn world() -> (TempDir, [usize; 2]) {
    let root = TempDir::new().unwrap();
    fixture::write(&root.path().join("pirate"), 2, 0.5);
    fixture::write(&root.path().join("sql"), 4, 0.5);
    let folder = fixture::scan(root.path()).unwrap();
    let memory = [0, 1].map(|at| folder.adapters()[at].facts.memory.native);
    (root, memory)
}

fn pin(adapters: &Adapters, wanted: &str) -> Revision {
    adapters.resolve(ME, &Wanted::parse(wanted).unwrap(), None).expect("the adapter exists")
}

#[tokio::test]
async fn a_folder_is_served_to_the_default_tenant_as_version_one() {
    let (root, [pirate, sql]) = world();
    let adapters = open(root.path(), pirate + sql).await;
    let revision = pin(&adapters, "sql");
    assert_eq!(revision.version, 1);
    assert_eq!(pin(&adapters, "sql@v1"), revision);
    assert_eq!(pin(&adapters, &format!("sql@sha256:{}", revision.digest)), revision);
    let wanted = Wanted::parse("sql").unwrap();
    assert_eq!(adapters.resolve(TenantId::OTHER, &wanted, None), None);
    assert!(adapters.list(TenantId::OTHER).is_empty());

    let lease = adapters.lease(ME, &revision).await.unwrap();
    assert_eq!(lease.digest(), revision.digest);
    assert_eq!(lease.bytes(), sql);
    let cards = adapters.list(ME);
    assert_eq!(
        cards.iter().map(|c| c.revision.name.as_str()).collect::<Vec<_>>(),
        ["pirate", "sql"]
    );
    assert!(!cards[0].resident);
    assert!(cards[1].resident);
    assert_eq!((cards[1].leases, cards[1].hits, cards[1].rank), (1, 1, 4));
    assert_eq!(adapters.card(ME, &revision.name), Some(cards[1].clone()));
    drop(lease);
    let card = adapters.card(ME, &revision.name).unwrap();
    assert_eq!((card.leases, card.hits), (0, 1));
}

#[tokio::test]
async fn more_adapters_fit_where_they_are_kept_in_eight_bits() {
    let (root, [pirate, sql]) = world();
    let folder = fixture::scan(root.path()).unwrap();
    let int8 = [0, 1].map(|at| folder.adapters()[at].facts.memory.int8);
    assert!(int8[0] < pirate && int8[1] < sql, "{int8:?} of {pirate} and {sql}");
    let (store, budget) = (Store::faulty().0, int8[0] + int8[1]);
    let adapters = fixture::open_as(Matrices::Int8, folder, store, budget).await;
    for (name, bytes) in ["pirate", "sql"].into_iter().zip(int8) {
        let lease = adapters.lease(ME, &pin(&adapters, name)).await.unwrap();
        assert_eq!(lease.bytes(), bytes, "{name} is as large as was forecast");
    }
    let stats = adapters.stats();
    assert_eq!((stats.resident, stats.resident_bytes, stats.evictions), (2, budget, 0));
    assert_eq!(stats.load_failures, 0);
}

#[tokio::test]
async fn the_metrics_agree_with_what_happened() {
    let (root, [pirate, sql]) = world();
    let adapters = open(root.path(), sql).await;
    for (name, bytes) in [("pirate", pirate), ("pirate", pirate), ("sql", sql)] {
        drop(adapters.lease(ME, &pin(&adapters, name)).await.unwrap());
        assert_eq!(adapters.stats().resident_bytes, bytes);
    }
    let stats = adapters.stats();
    assert_eq!((stats.hits, stats.misses, stats.loads, stats.evictions), (1, 2, 2, 1));
    assert_eq!((stats.budget, stats.resident, stats.leased), (sql, 1, 0));
    assert_eq!((stats.loading, stats.loading_bytes, stats.waiting), (0, 0, 0));
    assert_eq!((stats.load_seconds.count(), stats.load_failures), (2, 0));
}

#[tokio::test]
async fn a_census_has_what_is_in_memory_under_the_names_that_requests_use() {
    let (root, [pirate, sql]) = world();
    let adapters = open(root.path(), 2 * sql + pirate).await;
    let empty = adapters.census();
    let mean = usize::midpoint(pirate, sql);
    assert_eq!((empty.resident.len(), empty.room), (0, (2 * sql + pirate) / mean));
    let revision = pin(&adapters, "sql");
    drop(adapters.lease(ME, &revision).await.unwrap());
    let held = adapters.lease(ME, &pin(&adapters, "pirate")).await.unwrap();
    let census = adapters.census();
    assert_eq!(census.resident, [held.digest(), revision.digest], "what is lent comes first");
    assert_eq!((census.awaited.len(), census.room), (0, 2 + sql / mean));
    let ids = adapters.ids(&census.resident);
    assert_eq!(ids[&revision.digest].iter().collect::<Vec<_>>(), ["sql"]);
    assert_eq!(ids.len(), 2);
    assert!(adapters.ids(&[]).is_empty());
}

#[tokio::test]
async fn refusals_say_why_and_name_no_path() {
    let (root, [pirate, sql]) = world();
    let adapters = open(root.path(), sql - 1).await;
    let large = adapters.lease(ME, &pin(&adapters, "sql")).await.unwrap_err();
    assert!(large.to_string().contains(&format!("{sql} bytes")), "{large}");

    let revision = pin(&adapters, "pirate");
    std::fs::remove_dir_all(root.path().join("pirate")).unwrap();
    let failed = adapters.lease(ME, &revision).await.unwrap_err().to_string();
    assert!(failed.contains("adapter_config.json is missing"), "{failed}");
    assert!(!failed.contains(root.path().to_str().unwrap()), "{failed}");
    assert_eq!(adapters.stats().load_failures, 1);

    let unknown = Revision { digest: Digest::of(b"", b""), ..revision };
    assert!(matches!(adapters.lease(ME, &unknown).await, Err(NotLent::Gone)));
    assert_eq!(adapters.stats().resident_bytes, 0, "{pirate} bytes were reserved");
}
