use tempfile::TempDir;

use super::*;
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
    rows(&ledger.sums((0, u64::MAX), Period::Hour, |_| true).await.unwrap())
}

fn journals(folder: &TempDir) -> usize {
    folder.path().read_dir().unwrap().count()
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
    assert_eq!(journals(&folder), 0);
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
    let path = folder.path().read_dir().unwrap().next().unwrap().unwrap().path();
    let whole = fs::read(&path).unwrap();
    drop(ledger);
    fs::write(&path, [&whole[..], &whole[..whole.len() - 1]].concat()).unwrap();
    let next = Ledger::open(store, folder.path()).await.unwrap();
    // The first ledger's thread is at its end, and lets go of the file in a moment.
    while journals(&folder) > 0 {
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
    assert_eq!((all(&two).await, journals(&folder)), (vec![], 1));
    one.put().await.unwrap();
    assert_eq!((all(&two).await.len(), journals(&folder)), (1, 0));
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
    let below = folder.path().join("journals");
    let ledger = Ledger::open(store, &below).await.unwrap();
    fs::remove_dir(&below).unwrap();
    for _ in 0..3 {
        ledger.note(entry(7, None, 3)).await;
    }
    assert_eq!(all(&ledger).await, [(0, "-".to_owned(), 3, 9)]);
    fs::create_dir(&below).unwrap();
    ledger.note(entry(7, None, 1)).await;
    ledger.put().await.unwrap();
    assert_eq!(all(&ledger).await, [(0, "-".to_owned(), 4, 10)]);
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
    let days = ledger.sums((day, 3 * day), Period::Day, mine).await.unwrap();
    let dash = "-".to_owned();
    assert_eq!(rows(&days), [(day, dash.clone(), 2, 2), (2 * day, dash.clone(), 1, 1)]);
    let total = ledger.sums((day + HOUR, u64::MAX), Period::Total, mine).await.unwrap();
    assert_eq!(rows(&total), [(day + HOUR, dash, 3, 3)]);
}

#[tokio::test]
async fn those_told_apart_are_bounded() {
    let (store, _) = Store::faulty();
    let folder = TempDir::new().unwrap();
    let ledger = Ledger::open(store, folder.path()).await.unwrap();
    let most = MOST_TOTALS as u64;
    for number in 0..most + 10 {
        ledger.note(entry(7, Some(&format!("a{number}")), 1)).await;
    }
    let (told, rest) = ledger.totals();
    assert_eq!((told.len(), rest.requests), (MOST_TOTALS, 10));
    assert_eq!(all(&ledger).await.len() as u64, most + 10, "nothing is left out of the ledger");
}

#[test]
fn lines_are_written_as_they_are_documented() {
    let line = serde_json::to_string(&entry(7, Some("sql"), 3)).unwrap();
    let expected = r#"{"at":7,"tenant":0,"adapter":["sql",2],"requests":1,"prompt_tokens":10,"generated_tokens":3}"#;
    assert_eq!(line, expected);
    assert_eq!(serde_json::from_str::<Entry>(&line).unwrap(), entry(7, Some("sql"), 3));
    for unknown in [r#"{"at":7,"tenant":0,"words":1}"#, r#"{"at":-7,"tenant":0}"#, "{}"] {
        assert!(serde_json::from_str::<Entry>(unknown).is_err(), "{unknown}");
    }
}
