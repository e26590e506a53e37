use super::*;
use crate::{
    adapter::{
        Smoke,
        record::{Change, Stored},
    },
    lora::{Extras, Memory},
};

const ME: TenantId = TenantId::DEFAULT;
const OTHER: TenantId = TenantId::OTHER;
const BASE: &str = "base";

fn digest(content: &str) -> Digest {
    Digest::of(content.as_bytes(), b"")
}

fn facts(content: &str) -> Facts {
    let targets = vec!["q_proj".to_owned()];
    let memory = Memory { native: 20, int8: 11 };
    Facts { digest: digest(content), bytes: 10, memory, rank: 4, targets, extras: Arc::default() }
}

fn name(text: &str) -> AdapterName {
    AdapterName::parse(text).unwrap()
}

/// A file's key as if it had been put under this number.
fn blob(content: &str, put: u64) -> Blob {
    let key = format!("{}.{put:016x}", digest(content));
    Blob { key: BlobKey::try_from(key).unwrap(), bytes: 5 }
}

fn record(tenant: TenantId, text: &str, change: Change) -> Record {
    Record { at: 7000, by: "me".to_owned(), tenant, name: name(text), change }
}

/// A version whose two files were put under a number.
fn stored(version: u32, content: &str, put: u64) -> Change {
    Change::Stored(Box::new(Stored {
        version,
        digest: digest(content),
        config: blob("config", put),
        weights: blob(content, put),
        memory: 20,
        memory_int8: Some(11),
        rank: 4,
        targets: vec!["q_proj".to_owned()],
        base: BASE.to_owned(),
        activate: true,
        extras: Extras::default(),
        smoke: None,
    }))
}

fn resolve(registry: &Registry, tenant: TenantId, wanted: &str) -> Option<(u32, Digest)> {
    let revision = registry.resolve(tenant, &Wanted::parse(wanted).unwrap(), None)?;
    Some((revision.version, revision.digest))
}

#[test]
fn sizes_that_no_disk_has_add_up_without_overflow() {
    let registry = Registry::default();
    for version in [1, 2] {
        let Change::Stored(mut vast) = stored(version, &format!("{version}"), 1) else {
            unreachable!()
        };
        vast.weights.bytes = u64::MAX;
        registry.apply(&record(ME, "sql", Change::Stored(vast)));
    }
    assert_eq!(registry.with(|state| state.holdings(ME)), (1, u64::MAX));
}

#[test]
fn a_name_points_to_what_was_activated_last_and_keeps_the_others() {
    let registry = Registry::default();
    for (version, content) in [(1, "one"), (2, "two")] {
        registry.apply(&record(ME, "sql", stored(version, content, version.into())));
    }
    assert_eq!(resolve(&registry, ME, "sql"), Some((2, digest("two"))));
    assert_eq!(resolve(&registry, ME, "sql@v1"), Some((1, digest("one"))));
    assert_eq!(resolve(&registry, ME, "sql@v3"), None);
    let by_digest = format!("sql@sha256:{}", digest("one"));
    assert_eq!(resolve(&registry, ME, &by_digest), Some((1, digest("one"))));
    let entry = registry.active(ME, &name("sql")).unwrap();
    assert_eq!((entry.revision.version, entry.created), (2, 7));
    registry.apply(&record(ME, "sql", Change::Activated { version: 1 }));
    assert_eq!(resolve(&registry, ME, "sql"), Some((1, digest("one"))));
    let versions = registry.versions(ME, &name("sql"));
    let numbers: Vec<_> = versions.iter().map(|e| (e.revision.version, e.active)).collect();
    assert_eq!(numbers, [(1, true), (2, false)]);
}

#[test]
fn a_canary_ends_with_the_next_activation_and_with_its_version() {
    let registry = Registry::default();
    for (version, content) in [(1, "one"), (2, "two")] {
        registry.apply(&record(ME, "sql", stored(version, content, version.into())));
    }
    let canary = Canary { version: 1, percent: 99 };
    let drawn = || {
        let wanted = Wanted::parse("sql").unwrap();
        let lots = (0..20).map(|user| Lot::new(format!("{user}")));
        let version = |lot| registry.resolve(ME, &wanted, Some(&lot)).unwrap().version;
        lots.map(version).filter(|version| *version == 1).count()
    };
    registry.apply(&record(ME, "sql", Change::Canary(canary)));
    assert!(drawn() > 15);
    assert_eq!(resolve(&registry, ME, "sql"), Some((2, digest("two"))), "without a lot");
    assert_eq!(resolve(&registry, ME, "sql@v2"), Some((2, digest("two"))));
    for end in [
        Change::CanaryEnded,
        Change::Activated { version: 2 },
        Change::Removed { version: Some(1) },
    ] {
        registry.apply(&record(ME, "sql", Change::Canary(canary)));
        registry.apply(&record(ME, "sql", end.clone()));
        assert_eq!(drawn(), 0, "{end}");
        assert_eq!(registry.active(ME, &name("sql")).unwrap().canary, None, "{end}");
    }
}

#[test]
fn a_version_that_is_not_activated_is_there_by_number_alone() {
    let registry = Registry::default();
    let Change::Stored(mut first) = stored(1, "one", 1) else { unreachable!() };
    first.activate = false;
    registry.apply(&record(ME, "sql", Change::Stored(first)));
    assert_eq!(resolve(&registry, ME, "sql"), None);
    assert_eq!(resolve(&registry, ME, "sql@v1"), Some((1, digest("one"))));
    assert!(!registry.active(ME, &name("sql")).unwrap().active);
}

#[test]
fn a_digest_is_found_in_the_names_own_history_only() {
    let registry = Registry::default();
    registry.apply(&record(ME, "sql", stored(1, "one", 1)));
    registry.apply(&record(ME, "pirate", stored(1, "two", 2)));
    let foreign = format!("sql@sha256:{}", digest("two"));
    assert_eq!(resolve(&registry, ME, &foreign), None);
}

#[test]
fn a_tenant_sees_its_own_names_only() {
    let registry = Registry::default();
    registry.apply(&record(ME, "sql", stored(1, "mine", 1)));
    registry.apply(&record(OTHER, "sql", stored(1, "theirs", 2)));
    registry.apply(&record(OTHER, "secret", stored(1, "mine", 3)));
    assert_eq!(resolve(&registry, ME, "sql"), Some((1, digest("mine"))));
    assert_eq!(resolve(&registry, OTHER, "sql"), Some((1, digest("theirs"))));
    assert_eq!(resolve(&registry, ME, "secret"), None);
    assert_eq!(resolve(&registry, ME, "secret@v1"), None);
    let theirs = format!("sql@sha256:{}", digest("theirs"));
    assert_eq!(resolve(&registry, ME, &theirs), None);
    let listed: Vec<_> = registry.list(ME).into_iter().map(|e| e.revision.name).collect();
    assert_eq!(listed, [name("sql")]);
    assert!(registry.active(ME, &name("secret")).is_none());
    assert!(registry.versions(ME, &name("secret")).is_empty());
}

#[test]
fn names_are_listed_in_order() {
    let registry = Registry::default();
    for text in ["sql", "Pirate", "german"] {
        registry.add_from_folder(&name(text), 0, &facts(text), BASE);
    }
    let listed: Vec<_> = registry.list(ME).iter().map(|e| e.revision.name.to_string()).collect();
    assert_eq!(listed, ["Pirate", "german", "sql"]);
}

#[test]
fn what_is_removed_is_gone_and_its_number_is_not_given_again() {
    let registry = Registry::default();
    registry.apply(&record(ME, "sql", stored(1, "one", 1)));
    registry.apply(&record(ME, "sql", stored(2, "two", 2)));
    let removed = registry.apply(&record(ME, "sql", Change::Removed { version: Some(1) }));
    assert_eq!(removed.contents, [digest("one")]);
    assert_eq!(removed.blobs, [blob("config", 1).key, blob("one", 1).key]);
    assert_eq!(resolve(&registry, ME, "sql@v1"), None);
    assert_eq!(resolve(&registry, ME, "sql"), Some((2, digest("two"))));
    registry.apply(&record(ME, "sql", Change::Removed { version: None }));
    assert_eq!(resolve(&registry, ME, "sql"), None);
    assert!(registry.active(ME, &name("sql")).is_none());
    assert!(registry.list(ME).is_empty());
    assert_eq!(registry.with(|state| state.next_version(ME, &name("sql"))), 3);
    assert!(registry.with(|state| state.look(ME, &name("sql")).is_none()));
}

#[test]
fn content_and_files_stay_while_somebody_refers_to_them() {
    let registry = Registry::default();
    registry.apply(&record(ME, "sql", stored(1, "one", 1)));
    registry.apply(&record(OTHER, "law", stored(1, "one", 1)));
    assert!(registry.with(|state| state.has_blob(&blob("one", 1))));
    let gone = Change::Removed { version: None };
    assert_eq!(registry.apply(&record(ME, "sql", gone.clone())), Released::default());
    assert!(registry.content(digest("one")).is_some());
    let removed = registry.apply(&record(OTHER, "law", gone.clone()));
    assert_eq!(removed.contents, [digest("one")]);
    assert_eq!(removed.blobs.len(), 2);
    assert!(registry.content(digest("one")).is_none());
    assert_eq!(registry.apply(&record(OTHER, "law", gone)), Released::default(), "again");
}

#[test]
fn a_file_is_found_by_its_sha256_while_it_is_referred_to() {
    let registry = Registry::default();
    let sha = |content: &str| *digest(content).as_bytes();
    registry.apply(&record(ME, "sql", stored(1, "one", 9)));
    registry.apply(&record(OTHER, "sql", stored(1, "one", 8)));
    let found = |content: &str| -> Vec<Blob> {
        registry.with(|state| state.blobs_of(sha(content)).cloned().collect())
    };
    assert_eq!(found("one"), [blob("one", 8), blob("one", 9)]);
    assert_eq!(found("two"), []);
    assert!(registry.with(|state| state.keys().contains(&blob("one", 9).key)));
    assert!(!registry.with(|state| state.keys().contains(&blob("one", 7).key)));
}

#[test]
fn a_record_takes_precedence_over_the_folder() {
    let registry = Registry::default();
    assert!(registry.add_from_folder(&name("sql"), 3, &facts("folder"), BASE));
    assert_eq!(registry.with(|state| state.next_version(ME, &name("sql"))), 2);
    registry.apply(&record(ME, "sql", stored(2, "one", 1)));
    assert_eq!(resolve(&registry, ME, "sql"), Some((2, digest("one"))));
    assert_eq!(resolve(&registry, ME, "sql@v1"), Some((1, digest("folder"))));
    registry.apply(&record(ME, "sql", Change::Removed { version: None }));
    assert_eq!(resolve(&registry, ME, "sql"), None, "the folder's does not come back");
    assert!(!registry.add_from_folder(&name("sql"), 3, &facts("folder"), BASE));
    assert_eq!(resolve(&registry, ME, "sql"), None);
}

#[test]
fn folder_and_records_come_to_the_same_in_either_order() {
    let Change::Stored(mut kept) = stored(2, "two", 2) else { unreachable!() };
    kept.activate = false;
    let kept = Change::Stored(kept);
    let all = || Change::Removed { version: None };
    for changes in [
        vec![],
        vec![Change::Pinned],
        vec![kept.clone()],
        vec![stored(2, "two", 2)],
        vec![stored(1, "one", 1)],
        vec![stored(2, "two", 2), Change::Activated { version: 1 }],
        vec![stored(2, "two", 2), Change::Removed { version: Some(1) }],
        vec![all(), stored(2, "two", 2)],
        vec![kept.clone(), Change::Removed { version: Some(2) }],
        vec![all()],
        vec![all(), kept],
        vec![
            stored(2, "two", 2),
            Change::Pinned,
            Change::Activated { version: 1 },
            Change::Removed { version: Some(2) },
        ],
    ] {
        let run = |folder_first: bool| {
            let registry = Registry::default();
            let add = || registry.add_from_folder(&name("sql"), 3, &facts("folder"), BASE);
            if folder_first {
                add();
            }
            for change in &changes {
                registry.apply(&record(ME, "sql", change.clone()));
            }
            if !folder_first {
                add();
            }
            let shown = registry.versions(ME, &name("sql")).into_iter();
            let shown: Vec<_> = shown.map(|e| (e.revision, e.active, e.pinned, e.files)).collect();
            let next = registry.with(|state| state.next_version(ME, &name("sql")));
            let held = registry.content(digest("folder")).is_some();
            (shown, next, held)
        };
        assert_eq!(run(true), run(false), "{changes:?}");
    }
}

#[test]
fn copies_in_the_folder_are_one_content() {
    let registry = Registry::default();
    for text in ["one", "two"] {
        registry.add_from_folder(&name(text), 3, &facts("same"), BASE);
    }
    let gone = Change::Removed { version: None };
    assert_eq!(registry.apply(&record(ME, "one", gone.clone())), Released::default());
    assert!(registry.content(digest("same")).is_some());
    assert_eq!(registry.apply(&record(ME, "two", gone)).contents, [digest("same")]);
}

#[test]
fn pins_follow_the_name() {
    let registry = Registry::default();
    registry.apply(&record(ME, "sql", stored(1, "one", 1)));
    registry.apply(&record(ME, "sql", Change::Pinned));
    let pinned = || registry.pinned().iter().map(|(_, e)| e.revision.version).collect::<Vec<_>>();
    assert_eq!(pinned(), [1]);
    registry.apply(&record(ME, "sql", stored(2, "two", 2)));
    assert_eq!(pinned(), [2]);
    registry.apply(&record(ME, "sql", Change::Unpinned));
    assert_eq!(pinned(), [0_u32; 0]);
    registry.apply(&record(ME, "sql", Change::Pinned));
    registry.apply(&record(ME, "sql", Change::Removed { version: None }));
    registry.apply(&record(ME, "sql", stored(3, "two", 3)));
    assert_eq!(pinned(), [0_u32; 0], "a name that is used again is another one");
}

#[test]
fn a_version_is_for_the_bases_it_was_checked_against_itself() {
    let registry = Registry::default();
    registry.apply(&record(ME, "sql", stored(1, "one", 1)));
    registry.apply(&record(OTHER, "sql", stored(1, "one", 1)));
    let bases = |tenant| registry.active(tenant, &name("sql")).unwrap().bases;
    let [base, other] = [BASE, "other"].map(str::to_owned);
    assert_eq!(bases(ME), Bases::from([(base.clone(), None)]));
    let smoke = Some(Smoke { passed: true, answer: "Ahoy".to_owned() });
    let validated = Change::Validated { version: 1, base: other.clone(), smoke: smoke.clone() };
    registry.apply(&record(ME, "sql", validated));
    assert_eq!(bases(ME), Bases::from([(base.clone(), None), (other, smoke)]));
    assert_eq!(bases(OTHER), Bases::from([(base, None)]), "another tenant's is what it was");
}

#[test]
fn records_that_make_no_sense_change_nothing_that_is_there() {
    let registry = Registry::default();
    registry.apply(&record(ME, "sql", stored(1, "one", 1)));
    let validated = Change::Validated { version: 9, base: "other".to_owned(), smoke: None };
    for change in [Change::Removed { version: Some(9) }, validated] {
        assert_eq!(registry.apply(&record(ME, "sql", change)), Released::default());
    }
    assert_eq!(resolve(&registry, ME, "sql"), Some((1, digest("one"))));
    registry.apply(&record(ME, "none", Change::Activated { version: 1 }));
    assert_eq!(resolve(&registry, ME, "none"), None);
    assert!(registry.active(ME, &name("none")).is_none());
}
