use std::{
    collections::HashSet,
    num::NonZeroUsize,
    sync::{
        Condvar,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::Poll,
    thread,
};

use tokio::task::{JoinHandle, JoinSet};

use super::{super::line::Portion, *};

/// Longer than anything here takes; reached only by a test that fails.
const LONG: Duration = Duration::from_mins(1);

/// A source whose loads can be held, broken or made to panic.
#[derive(Default)]
struct Shelf {
    loads: AtomicU64,
    held: Mutex<HashSet<Digest>>,
    released: Condvar,
    broken: Mutex<HashSet<Digest>>,
    panics: Mutex<HashSet<Digest>>,
}

impl Source for Arc<Shelf> {
    type Loaded = Digest;

    fn load(&self, digest: Digest, _: usize) -> Result<Digest, LoadError> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        let held = self.held.lock().unwrap();
        let stays = |held: &mut HashSet<Digest>| held.contains(&digest);
        drop(self.released.wait_timeout_while(held, LONG, stays).unwrap());
        assert!(!self.panics.lock().unwrap().contains(&digest), "a panic that is wanted");
        if self.broken.lock().unwrap().contains(&digest) {
            return Err(LoadError::Changed);
        }
        Ok(digest)
    }
}

impl Shelf {
    fn hold(&self, name: &str) {
        self.held.lock().unwrap().insert(digest(name));
    }

    fn release(&self, name: &str) {
        self.held.lock().unwrap().remove(&digest(name));
        self.released.notify_all();
    }

    fn loads(&self) -> u64 {
        self.loads.load(Ordering::SeqCst)
    }
}

fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes(), b"")
}

type Tested = Cache<Arc<Shelf>>;

/// Adapters take one byte each.
fn cache(budget: usize, time_out: Duration) -> (Arc<Tested>, Arc<Shelf>) {
    let shelf = Arc::new(Shelf::default());
    let loaders = NonZeroUsize::new(4).unwrap();
    let bounds = Bounds { budget, waiting: 200, loads: loaders };
    (Arc::new(Cache::new(Arc::clone(&shelf), bounds, time_out)), shelf)
}

async fn lease(cache: &Tested, name: &str) -> Result<Loan<Arc<Shelf>>, NotLent> {
    cache.lease(Want { owner: Owner(0), digest: digest(name), bytes: 1 }).await
}

fn ask(cache: &Arc<Tested>, name: &'static str) -> JoinHandle<Result<(), NotLent>> {
    let cache = Arc::clone(cache);
    tokio::spawn(async move { lease(&cache, name).await.map(drop) })
}

async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LONG, wait).await.expect("the condition is met in the end");
}

fn standing(cache: &Tested) -> Standing {
    cache.stats().0
}

fn refusal<T>(result: Result<T, NotLent>) -> NotLent {
    match result {
        Ok(_) => panic!("an adapter was lent"),
        Err(refusal) => refusal,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_first_requests_cause_one_load() {
    let (cache, shelf) = cache(1, LONG);
    shelf.hold("a");
    let asked: Vec<_> = (0..100).map(|_| ask(&cache, "a")).collect();
    until(|| standing(&cache).waiting == 100).await;
    shelf.release("a");
    for request in asked {
        request.await.unwrap().unwrap();
    }
    assert_eq!(shelf.loads(), 1);
    until(|| standing(&cache).leased == 0).await;
    assert_eq!(cache.stats().1.count(), 1);
    let holds = |owner, name| cache.holds(Owner(owner), &digest(name));
    assert!(holds(0, "a") && !holds(0, "b") && !holds(1, "a"));
}

#[tokio::test]
async fn a_failed_load_fails_its_own_requests_only() {
    let (cache, shelf) = cache(2, LONG);
    shelf.broken.lock().unwrap().insert(digest("a"));
    let (a, b) = tokio::join!(lease(&cache, "a"), lease(&cache, "b"));
    let NotLent::Failed(error) = refusal(a) else { panic!("another refusal") };
    assert!(matches!(*error, LoadError::Changed));
    assert_eq!(*b.unwrap_or_else(|refusal| panic!("{refusal}")).value, digest("b"));
    assert_eq!(standing(&cache).loading_bytes, 0);
}

#[tokio::test]
async fn a_load_that_panics_is_a_failed_load() {
    let (cache, shelf) = cache(1, LONG);
    shelf.panics.lock().unwrap().insert(digest("a"));
    let NotLent::Failed(error) = refusal(lease(&cache, "a").await) else {
        panic!("another refusal")
    };
    assert!(matches!(*error, LoadError::BrokenOff));
    assert_eq!(standing(&cache).loading_bytes, 0);
    assert!(lease(&cache, "b").await.is_ok());
}

#[tokio::test]
async fn a_request_that_goes_away_leaves_the_line() {
    let (cache, shelf) = cache(1, LONG);
    let loan = lease(&cache, "a").await.ok();
    let cold = ask(&cache, "b");
    until(|| standing(&cache).waiting == 1).await;
    cold.abort();
    until(|| standing(&cache).waiting == 0).await;
    drop(loan);
    assert_eq!(shelf.loads(), 1, "nobody wants b any more");
}

#[tokio::test]
async fn a_loan_that_nobody_receives_is_returned() {
    let (cache, shelf) = cache(1, LONG);
    shelf.hold("a");
    let mut asked = Box::pin(lease(&cache, "a"));
    assert!(futures_util::poll!(&mut asked).is_pending());
    shelf.release("a");
    until(|| standing(&cache).leased == 1).await;
    drop(asked);
    until(|| standing(&cache).leased == 0).await;
}

#[tokio::test]
async fn waiting_has_an_end() {
    let time_out = 2 * PATIENCE;
    let (cache, _) = cache(1, time_out);
    let loan = lease(&cache, "a").await.ok();
    let NotLent::TimedOut { waited } = refusal(lease(&cache, "b").await) else {
        panic!("another refusal")
    };
    assert!(waited >= time_out);
    assert_eq!(standing(&cache).waiting, 0);
    assert!(lease(&cache, "a").await.is_ok(), "the recall ended with the waiter");
    drop(loan);
}

#[tokio::test]
async fn who_waits_for_its_own_leases_is_told_so() {
    let (cache, _) = cache(2, 2 * PATIENCE);
    let mine = (Owner(0), Portion { least: 0, most: 1 });
    cache.divide(Portions::of(2, [mine]).0);
    let loan = lease(&cache, "a").await.ok();
    let refused = refusal(lease(&cache, "b").await);
    assert!(matches!(refused, NotLent::PortionInUse { most: 1 }), "{refused}");
    drop(loan);
    assert!(lease(&cache, "b").await.is_ok());
    assert_eq!(standing(&cache).resident_bytes, 1);
}

#[tokio::test]
async fn a_load_that_hangs_does_not_hold_its_requests() {
    let (cache, shelf) = cache(1, Duration::from_millis(20));
    shelf.hold("a");
    assert!(matches!(refusal(lease(&cache, "a").await), NotLent::TimedOut { .. }));
    let now = standing(&cache);
    assert_eq!((now.waiting, now.loading), (0, 1));
    shelf.release("a");
    until(|| standing(&cache).resident == 1).await;
}

#[tokio::test]
async fn leases_may_be_returned_from_any_thread() {
    let (cache, _) = cache(1, LONG);
    let loan = lease(&cache, "a").await.ok();
    let cold = ask(&cache, "b");
    until(|| standing(&cache).waiting == 1).await;
    thread::spawn(move || drop(loan)).join().unwrap();
    cold.await.unwrap().unwrap();
}

#[tokio::test]
async fn evicted_adapters_are_dropped_before_the_next_load() {
    let (cache, shelf) = cache(1, LONG);
    let first = lease(&cache, "a").await.ok().map(|loan| Arc::downgrade(&loan.value)).unwrap();
    assert_eq!(first.strong_count(), 1);
    shelf.hold("b");
    let cold = ask(&cache, "b");
    until(|| shelf.loads() == 2).await;
    assert_eq!(first.strong_count(), 0);
    shelf.release("b");
    cold.await.unwrap().unwrap();
}

#[tokio::test]
async fn patience_ends_though_nothing_else_happens() {
    let (cache, _) = cache(1, LONG);
    let mut loans = vec![lease(&cache, "a").await.ok()];
    let cold = ask(&cache, "b");
    until(|| standing(&cache).waiting == 1).await;
    // No lease is returned before a is recalled, so nothing but time can be the reason.
    let mut late = None;
    let recalled = async {
        while late.is_none() {
            let mut asked = Box::pin(lease(&cache, "a"));
            match futures_util::poll!(&mut asked) {
                Poll::Ready(loan) => loans.push(loan.ok()),
                Poll::Pending => late = Some(asked),
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LONG, recalled).await.expect("a is recalled in the end");
    drop(loans);
    cold.await.unwrap().unwrap();
    assert!(late.expect("just asked").await.is_ok());
}

/// Two hot adapters fill the budget; each always has a lease, because the next begins before the last one ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_adapter_is_served_under_constant_traffic_on_hot_ones() {
    let (cache, _) = cache(2, LONG);
    let rounds = Arc::new(AtomicUsize::new(0));
    let mut traffic = JoinSet::new();
    for hot in ["a", "b"] {
        let (cache, rounds) = (Arc::clone(&cache), Arc::clone(&rounds));
        traffic.spawn(async move {
            let mut last = None;
            loop {
                let asked = lease(&cache, hot);
                tokio::pin!(asked);
                let next = match futures_util::poll!(&mut asked) {
                    Poll::Ready(next) => next,
                    // Recalled: what runs ends, and the next request waits its turn.
                    Poll::Pending => {
                        drop(last.take());
                        asked.await
                    }
                };
                last = Some(next.unwrap_or_else(|refusal| panic!("{hot}: {refusal}")));
                rounds.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }
    until(|| standing(&cache).leased == 2).await;
    for cold in ["c", "d", "e"] {
        assert!(lease(&cache, cold).await.is_ok());
    }
    let before = rounds.load(Ordering::SeqCst);
    let both = || ["a", "b"].iter().all(|name| cache.holds(Owner(0), &digest(name)));
    until(|| rounds.load(Ordering::SeqCst) > before + 20 && both()).await;
    until(|| standing(&cache).leased == 2).await;
    let standing = standing(&cache);
    assert!(standing.resident_bytes + standing.loading_bytes <= 2);
    assert!(standing.counts.evictions >= 3);
    traffic.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_leaks_under_random_traffic() {
    let (cache, shelf) = cache(3, LONG);
    shelf.broken.lock().unwrap().insert(digest("6"));
    let mut requests = JoinSet::new();
    for index in 0..300_u64 {
        let cache = Arc::clone(&cache);
        requests.spawn(async move {
            // Seven adapters in an order that repeats late, and every fifth request gives up early.
            let name = (index * index / 3 % 7).to_string();
            tokio::time::sleep(Duration::from_millis(index / 4)).await;
            let patience = if index % 5 == 0 { Duration::from_millis(2) } else { LONG };
            let Ok(lent) = tokio::time::timeout(patience, lease(&cache, &name)).await else {
                return;
            };
            match lent {
                Ok(loan) => {
                    assert_eq!(*loan.value, digest(&name));
                    tokio::time::sleep(Duration::from_millis(index % 4)).await;
                    drop(loan);
                }
                Err(NotLent::Failed(_)) => assert_eq!(name, "6"),
                // 200 may wait.
                Err(NotLent::Crowded { waiting }) => assert_eq!(waiting, 200),
                Err(refusal) => panic!("{refusal}"),
            }
        });
    }
    tokio::time::timeout(LONG, async {
        while let Some(done) = requests.join_next().await {
            done.unwrap();
        }
    })
    .await
    .expect("everybody is answered");
    until(|| standing(&cache).loading == 0).await;
    let standing = standing(&cache);
    assert_eq!((standing.leased, standing.waiting, standing.loading_bytes), (0, 0, 0));
    assert!(standing.resident_bytes <= 3);
    assert_eq!(standing.counts.loads, shelf.loads());
}

#[test]
fn a_runtime_that_stops_breaks_its_loads_off() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (cache, shelf) = runtime.block_on(async { cache(2, LONG) });
    shelf.hold("a");
    shelf.hold("b");
    runtime.block_on(async {
        let (a, b) = (lease(&cache, "a"), lease(&cache, "b"));
        tokio::pin!(a, b);
        assert!(futures_util::poll!(&mut a).is_pending());
        assert!(futures_util::poll!(&mut b).is_pending());
        until(|| shelf.loads() == 2).await;
    });
    drop(runtime);
    assert_eq!(standing(&cache).loading, 2);
    shelf.release("a");
    shelf.release("b");
    let since = Instant::now();
    while standing(&cache).loading > 0 {
        assert!(since.elapsed() < LONG, "a load that nobody can be told of is over");
        thread::yield_now();
    }
    assert_eq!(standing(&cache).resident_bytes, 0);
}
