use futures_util::FutureExt as _;
use tempfile::TempDir;

use super::{
    totals::{MOST_ADAPTERS, MOST_OF_TENANT},
    *,
};
use crate::{store::Fault, tenant::TenantId};

const ME: TenantId = TenantId::DEFAULT;
const HOUR: u64 = 3600;

fn account(tenant: TenantId, adapter: Option<&str>) -> Account {
    let adapter = adapter.map(|name| Used { name: name.to_owned(), version: 2 });
    Account { tenant, adapter }
}

fn entry(at: u64, adapter: Option<&str>, generated: u64) -> Entry {
    let spent =
        Spent { requests: 1, prompt_tokens: 10, generated_tokens: generated, ..Spent::default() };
    Entry { at, account: account(ME, adapter), spent }
}

/// Requests and generated tokens of all rows, with the time and the adapter of each.
fn rows(sums: &Sums) -> Vec<(u64, String, u64, u64)> {
    let name =
        |account: &Account| account.adapter.as_ref().map_or("-", |used| &used.name).to_owned();
    let row = |(at, account, spent): (u64, &Account, &Spent)| {
        (at, name(account), spent.requests, spent.generated_tokens)
    };
    sums.rows().map(row).collect()
}

async fn all(ledger: &Ledger) -> Vec<(u64, String, u64, u64)> {
    rows(&ledger.sums(Asker::Operator, (0, u64::MAX), Period::Hour, |_| true).await.unwrap())
}

/// Where a store's journals are in a folder.
async fn home(store: &Store, folder: &TempDir) -> PathBuf {
    folder.path().join(store.id().await.unwrap())
}

/// All journals in a folder, of whichever store.
fn journals(folder: &TempDir) -> Vec<PathBuf> {
    let files = |home: io::Result<fs::DirEntry>| home.unwrap().path().read_dir().unwrap();
    let homes = folder.path().read_dir().unwrap();
    homes.flat_map(files).map(|file| file.unwrap().path()).collect()
}

/// A journal as a dead process has left it.
async fn left(store: &Store, folder: &TempDir, name: &str, content: &str) -> PathBuf {
    let home = home(store, folder).await;
    fs::create_dir_all(&home).unwrap();
    let path = home.join(format!("{name}.journal"));
    fs::write(&path, content).unwrap();
    path
}

fn line(entry: &Entry) -> String {
    serde_json::to_string(entry).unwrap() + "\n"
}

#[tokio::test]
async fn what_was_noted_counts_once_wherever_it_is() {
    let (store, _) = Store::faulty();
    let folder = TempDir::new().unwrap();
    let ledger = Ledger::open(store.clone(), folder.path()).await.unwrap();
    ledger.note(entry(HOUR + 5, Some("sql"), 3)).await;
    ledger.note(entry(HOUR + 9, Some("sql"), 4)).await;
    ledger.note(entry(2 * HOUR, None, 1)).await;
    let expected = [(HOUR, "sql".to_owned(), 2, 7), (2 * HOUR, "-".to_owned(), 1, 1)];
    assert_eq!(all(&ledger).await, expected);
    ledger.put().await.unwrap();
    assert!(journals(&folder).is_empty());
    assert_eq!(all(&ledger).await, expected);
    ledger.note(entry(2 * HOUR, None, 5)).await;
    assert_eq!(all(&ledger).await[1], (2 * HOUR, "-".to_owned(), 2, 6));
    let other = TempDir::new().unwrap();
    let other = Ledger::open(store, other.path()).await.unwrap();
    assert_eq!(all(&other).await, expected, "what is in the store is seen by all");
}

#[tokio::test]
async fn what_a_process_leaves_is_found_by_the_next() {
    let (store, _) = Store::faulty();
    let folder = TempDir::new().unwrap();
    let ledger = Ledger::open(store.clone(), folder.path()).await.unwrap();
    ledger.note(entry(7, None, 3)).await;
    // As a process that is killed leaves it, in the middle of a write.
    let path = journals(&folder).remove(0);
    let whole = fs::read(&path).unwrap();
    drop(ledger);
    fs::write(&path, [&whole[..], &whole[..whole.len() - 1]].concat()).unwrap();
    let next = Ledger::open(store, folder.path()).await.unwrap();
    // The first ledger's thread is at its end, and lets go of the file in a moment.
    while !journals(&folder).is_empty() {
        next.put().await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(all(&next).await, [(0, "-".to_owned(), 1, 3)]);
}

#[tokio::test]
async fn a_journal_that_somebody_writes_is_left_alone() {
    let (store, _) = Store::faulty();
    let folder = TempDir::new().unwrap();
    let one = Ledger::open(store.clone(), folder.path()).await.unwrap();
    let two = Ledger::open(store, folder.path()).await.unwrap();
    one.note(entry(7, None, 3)).await;
    two.put().await.unwrap();
    assert_eq!((all(&two).await, journals(&folder).len()), (vec![], 1));
    one.put().await.unwrap();
    assert_eq!((all(&two).await.len(), journals(&folder).len()), (1, 0));
}

#[tokio::test]
async fn a_store_that_fails_loses_nothing_and_counts_nothing_twice() {
    for fault in [Fault::RequestLost, Fault::AnswerLost, Fault::RetriedAfterLoss] {
        let (store, faults) = Store::faulty();
        let folder = TempDir::new().unwrap();
        let ledger = Ledger::open(store, folder.path()).await.unwrap();
        ledger.note(entry(7, None, 3)).await;
        faults.next_put(fault);
        // It may fail, and is repeated.
        drop(ledger.put().await);
        assert_eq!(all(&ledger).await, [(0, "-".to_owned(), 1, 3)], "{fault:?}");
        ledger.put().await.unwrap();
        assert_eq!(all(&ledger).await, [(0, "-".to_owned(), 1, 3)], "{fault:?}");
    }
}

#[tokio::test]
async fn a_disk_that_takes_nothing_is_waited_for() {
    let (store, _) = Store::faulty();
    let folder = TempDir::new().unwrap();
    let ledger = Ledger::open(store.clone(), folder.path()).await.unwrap();
    let home = home(&store, &folder).await;
    // No folder can be made where a file is.
    fs::remove_dir(&home).unwrap();
    fs::write(&home, "").unwrap();
    for _ in 0..3 {
        ledger.note(entry(7, None, 3)).await;
    }
    assert_eq!(all(&ledger).await, [(0, "-".to_owned(), 3, 9)]);
    fs::remove_file(&home).unwrap();
    ledger.note(entry(7, None, 1)).await;
    ledger.put().await.unwrap();
    assert_eq!(all(&ledger).await, [(0, "-".to_owned(), 4, 10)]);
}

/// Lines went on into a file that no name led to, and were gone with the process.
#[tokio::test]
async fn a_journals_folder_that_is_removed_loses_nothing() {
    let (store, faults) = Store::faulty();
    let root = TempDir::new().unwrap();
    let folder = root.path().join("journals");
    let ledger = Ledger::open(store.clone(), &folder).await.unwrap();
    // Two journals: the store has not got the first.
    ledger.note(entry(7, None, 3)).await;
    faults.next_put(Fault::RequestLost);
    ledger.put().await.unwrap_err();
    ledger.note(entry(7, Some("sql"), 4)).await;
    let home = folder.join(store.id().await.unwrap());
    let journals = || {
        let files = home.read_dir().into_iter().flatten();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".journal")).collect::<std::collections::BTreeSet<_>>()
    };
    let before = journals();
    assert_eq!(before.len(), 2);
    fs::remove_dir_all(&folder).unwrap();
    ledger.note(entry(7, Some("law"), 5)).await;
    let is_back = async || {
        while journals().len() < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), is_back()).await.expect("they are written again");
    assert!(journals().is_superset(&before), "under their names");
    let expected =
        [(0, "-".to_owned(), 1, 3), (0, "law".to_owned(), 1, 5), (0, "sql".to_owned(), 1, 4)];
    assert_eq!(all(&ledger).await, expected);
    // As the next process finds it.
    let next = Ledger::open(store.clone(), &folder).await.unwrap();
    next.put().await.unwrap();
    ledger.put().await.unwrap();
    assert_eq!((all(&next).await, all(&ledger).await), (expected.to_vec(), expected.to_vec()));
    assert_eq!(journals().len(), 0);
}

/// What would be noted there would not be there when the volume is back.
#[tokio::test]
async fn journals_that_are_away_with_the_store_are_waited_for() {
    let root = TempDir::new().unwrap();
    let (place, elsewhere) = (root.path().join("store"), root.path().join("elsewhere"));
    let location = crate::store::Location::Folder(place.clone());
    let store = Store::open(&location).await.unwrap();
    let ledger = Ledger::open(store.clone(), &place.join("journals")).await.unwrap();
    ledger.note(entry(7, None, 3)).await;
    fs::rename(&place, &elsewhere).unwrap();
    ledger.put().await.ok();
    for _ in 0..3 {
        ledger.note(entry(7, Some("sql"), 4)).await;
    }
    assert!(!place.exists(), "nothing is made in its place");
    fs::rename(&elsewhere, &place).unwrap();
    ledger.note(entry(7, Some("law"), 5)).await;
    ledger.put().await.unwrap();
    let expected =
        [(0, "-".to_owned(), 1, 3), (0, "law".to_owned(), 1, 5), (0, "sql".to_owned(), 3, 12)];
    assert_eq!(all(&ledger).await, expected);
    let next = Ledger::open(store, &place.join("journals")).await.unwrap();
    assert_eq!(all(&next).await, expected);
}

#[tokio::test]
async fn sums_are_of_the_time_and_of_those_that_are_asked_for() {
    let (store, _) = Store::faulty();
    let folder = TempDir::new().unwrap();
    let ledger = Ledger::open(store, folder.path()).await.unwrap();
    let day = 24 * HOUR;
    for at in [day, day + HOUR, 2 * day, 3 * day] {
        ledger.note(entry(at, None, 1)).await;
        let account = account(TenantId::OTHER, Some("sql"));
        ledger.note(Entry { account, ..entry(at, None, 100) }).await;
    }
    let mine = |account: &Account| account.tenant == ME;
    let days = ledger.sums(Asker::Operator, (day, 3 * day), Period::Day, mine).await.unwrap();
    let dash = "-".to_owned();
    assert_eq!(rows(&days), [(day, dash.clone(), 2, 2), (2 * day, dash.clone(), 1, 1)]);
    let total =
        ledger.sums(Asker::Operator, (day + HOUR, u64::MAX), Period::Total, mine).await.unwrap();
    assert_eq!(rows(&total), [(day + HOUR, dash, 3, 3)]);
}

#[tokio::test]
async fn two_stores_with_one_folder_do_not_bill_each_others_usage() {
    let ((one, _), (two, _)) = (Store::faulty(), Store::faulty());
    let folder = TempDir::new().unwrap();
    let path = left(&one, &folder, "000000000007-aa", &line(&entry(7, None, 3))).await;
    let other = Ledger::open(two, folder.path()).await.unwrap();
    other.put().await.unwrap();
    assert_eq!((all(&other).await, path.exists()), (vec![], true));
    let own = Ledger::open(one, folder.path()).await.unwrap();
    own.put().await.unwrap();
    assert_eq!((all(&own).await.len(), path.exists()), (1, false));
}

#[tokio::test]
async fn a_line_that_is_not_understood_is_no_torn_end() {
    let (store, _) = Store::faulty();
    let folder = TempDir::new().unwrap();
    let good = line(&entry(7, None, 3));
    let newer = format!("{good}{{\"at\":7,\"tenant\":0,\"images\":1}}\n{good}");
    let newer_path = left(&store, &folder, "000000000007-aa", &newer).await;
    let zeros_path = left(&store, &folder, "000000000007-bb", &format!("\0\0\n{good}")).await;
    left(&store, &folder, "000000000007-cc", &format!("{good}{{\"at\":7,")).await;
    let ledger = Ledger::open(store.clone(), folder.path()).await.unwrap();
    ledger.put().await.unwrap();
    assert_eq!(all(&ledger).await, [(0, "-".to_owned(), 1, 3)], "of the one that is understood");
    assert_eq!(store.sheets(SHEETS).await.unwrap(), ["000000000007-cc"]);
    let mut left = journals(&folder);
    left.sort_unstable();
    assert_eq!(left, [newer_path.clone(), zeros_path]);
    assert_eq!(fs::read_to_string(newer_path).unwrap(), newer);
}

#[tokio::test]
async fn a_journal_that_cannot_be_opened_holds_up_no_other() {
    let (store, _) = Store::faulty();
    let folder = TempDir::new().unwrap();
    for name in ["000000000001-aa", "000000000009-zz"] {
        // No file at all.
        let path = home(&store, &folder).await.join(format!("{name}.journal"));
        fs::create_dir_all(path).unwrap();
    }
    left(&store, &folder, "000000000007-mm", &line(&entry(7, None, 3))).await;
    let ledger = Ledger::open(store.clone(), folder.path()).await.unwrap();
    ledger.put().await.unwrap();
    assert_eq!(store.sheets(SHEETS).await.unwrap(), ["000000000007-mm"]);
}

#[tokio::test]
async fn what_a_dead_process_left_counts_before_the_store_has_it() {
    let (store, faults) = Store::faulty();
    let folder = TempDir::new().unwrap();
    left(&store, &folder, "000000000007-aa", &line(&entry(7, None, 3))).await;
    faults.next_put(Fault::RequestLost);
    let ledger = Ledger::open(store.clone(), folder.path()).await.unwrap();
    let expected = [(0, "-".to_owned(), 1, 3)];
    assert_eq!(all(&ledger).await, expected);
    faults.none();
    ledger.put().await.unwrap();
    assert_eq!(store.sheets(SHEETS).await.unwrap().len(), 1);
    assert_eq!(all(&ledger).await, expected, "and not twice");
}

#[tokio::test]
async fn lines_that_are_older_than_their_journal_are_found() {
    let (store, _) = Store::faulty();
    let mut late = Sums::default();
    late.add(&entry(HOUR, None, 3));
    store.put_sheet(SHEETS, &format!("{:012}-aa", 10 * HOUR), &late).await.unwrap();
    let folder = TempDir::new().unwrap();
    let ledger = Ledger::open(store, folder.path()).await.unwrap();
    let hour = (HOUR, 2 * HOUR);
    let sums = ledger.sums(Asker::Operator, hour, Period::Hour, |_| true).await.unwrap();
    assert_eq!(rows(&sums), [(HOUR, "-".to_owned(), 1, 3)]);
}

#[tokio::test]
async fn a_tenant_that_asks_again_and_again_holds_up_nobody() {
    let turns = Turns::default();
    let (me, other) = (Asker::Tenant(ME), Asker::Tenant(TenantId::OTHER));
    let mine = turns.take(me).await.unwrap();
    assert!(turns.take(me).await.is_none(), "while it has a turn");
    assert!(turns.take(Asker::Operator).now_or_never().is_some(), "the operator need not wait");
    let mut waits = Box::pin(turns.take(other));
    assert!((&mut waits).now_or_never().is_none(), "one tenant after the other");
    assert!(turns.take(other).await.is_none(), "while it waits for one");
    drop(mine);
    assert!(waits.await.is_some());
    assert!(turns.take(me).now_or_never().flatten().is_some(), "the next time");
    let given_up = turns.take(me);
    drop(given_up);
    assert!(turns.take(me).now_or_never().flatten().is_some());
}

#[tokio::test]
async fn one_tenant_does_not_take_all_series() {
    let (store, _) = Store::faulty();
    let folder = TempDir::new().unwrap();
    let ledger = Ledger::open(store, folder.path()).await.unwrap();
    let note = async |tenant: u32, name: Option<&str>| {
        let tenant: TenantId = serde_json::from_value(tenant.into()).unwrap();
        ledger.note(Entry { account: account(tenant, name), ..entry(7, None, 1) }).await;
        tenant
    };
    for tenant in 0..9 {
        note(tenant, None).await;
        for number in 0..40 {
            note(tenant, Some(&format!("a{number}"))).await;
        }
    }
    let totals = ledger.totals();
    let of = |tenant: u32, part: &Part| {
        let is_meant = |total: &&Total| {
            total.tenant.is_some_and(|id| id.number() == tenant) && total.of == *part
        };
        totals.iter().find(is_meant).map(|total| total.spent.requests)
    };
    assert_eq!((of(0, &Part::Others), of(0, &Part::Base)), (Some(8), Some(1)));
    assert_eq!(of(7, &Part::Adapter("a31".to_owned())), Some(1));
    assert_eq!((of(8, &Part::Others), of(8, &Part::Base)), (Some(40), Some(1)), "no room is left");
    let named = totals.iter().filter(|total| matches!(total.of, Part::Adapter(_)));
    assert_eq!((named.count(), MOST_OF_TENANT * 8), (MOST_ADAPTERS, MOST_ADAPTERS));
    assert_eq!(all(&ledger).await.len(), 9 * 41, "nothing is left out of the ledger");
}

#[tokio::test]
async fn another_version_of_an_adapter_takes_no_series() {
    let (store, _) = Store::faulty();
    let folder = TempDir::new().unwrap();
    let ledger = Ledger::open(store, folder.path()).await.unwrap();
    for version in 1..=100 {
        let adapter = Some(Used { name: "sql".to_owned(), version });
        let account = Account { tenant: ME, adapter };
        ledger.note(Entry { account, ..entry(7, None, 1) }).await;
    }
    let totals = ledger.totals();
    let [Total { of: Part::Adapter(name), spent, .. }] = &*totals else { panic!("{totals:?}") };
    assert_eq!((name.as_str(), spent.requests), ("sql", 100));
}

#[test]
fn lines_are_written_as_they_are_documented() {
    let line = serde_json::to_string(&entry(7, Some("sql"), 3)).unwrap();
    let expected = r#"{"at":7,"account":{"tenant":0,"adapter":{"name":"sql","version":2}},"spent":{"requests":1,"prompt_tokens":10,"generated_tokens":3}}"#;
    assert_eq!(line, expected);
    assert_eq!(serde_json::from_str::<Entry>(&line).unwrap(), entry(7, Some("sql"), 3));
    for unknown in [
        r#"{"at":7,"account":{"tenant":0},"spent":{"words":1}}"#,
        r#"{"at":7,"account":{"tenant":0,"team":1},"spent":{}}"#,
        r#"{"at":7,"account":{"tenant":0},"spent":{},"why":"?"}"#,
        r#"{"at":-7,"account":{"tenant":0},"spent":{}}"#,
        "{}",
    ] {
        assert!(serde_json::from_str::<Entry>(unknown).is_err(), "{unknown}");
    }
}
