//! The threads of a step.
//!
//! A step has hundreds of short parallel regions. Workers spin for a moment after a region, so that the next one costs
//! a fraction of a microsecond, and then park. A region is over when its tasks are done, not when its workers have
//! noticed: a worker that the system has put aside before it took a task holds nobody up.

#![expect(
    unsafe_code,
    reason = "a region's closure is borrowed from the caller's stack; see `run_parts`"
)]

use std::{
    cell::Cell,
    fmt, io,
    marker::PhantomData,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle, Thread},
    time::{Duration, Instant},
};

/// How long a worker looks for the next region before it parks. Longer than the serial parts between two regions of a step.
const SPIN: Duration = Duration::from_micros(50);

/// Looks for the next region between two at the clock.
const LOOKS: usize = 64;

/// Parts for each thread of a region of short tasks. Taking one costs the others a cache line or two, so that there must be few; a
/// thread that the system puts aside must not leave much undone.
const PARTS: usize = 4;

thread_local! {
    /// This thread is inside a task of some pool's region.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

/// A few threads that run the tasks of one region at a time, the caller's among them.
///
/// Cheap to clone; the threads end with the last clone.
#[derive(Clone)]
pub struct Pool {
    crew: Arc<Crew>,
}

struct Crew {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One region at a time.
    region: Mutex<()>,
}

/// On a cache line of its own: whoever writes it takes nothing else from the others.
#[repr(align(128))]
struct Line<T>(T);

struct Shared {
    /// High half: the region's number, which comes again only after 2^32 others. Low half: parts not yet taken.
    ticket: Line<AtomicU64>,
    /// Parts not yet done.
    open: Line<AtomicUsize>,
    /// The region's work: address and code of a [`Region`].
    data: AtomicUsize,
    code: AtomicUsize,
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
    parked: Vec<AtomicBool>,
    ending: AtomicBool,
}

type Work = fn(usize, usize);

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

impl Pool {
    /// `threads` in all, the caller's own included; an error where the system refuses to start one.
    pub fn new(threads: usize) -> io::Result<Self> {
        let helpers = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            ticket: Line(AtomicU64::new(0)),
            data: AtomicUsize::new(0),
            code: AtomicUsize::new(0),
            open: Line(AtomicUsize::new(0)),
            panic: Mutex::new(None),
            parked: (0..helpers).map(|_| AtomicBool::new(false)).collect(),
            ending: AtomicBool::new(false),
        });
        let mut crew = Crew { shared, workers: Vec::new(), region: Mutex::new(()) };
        for index in 0..helpers {
            let shared = Arc::clone(&crew.shared);
            let thread = thread::Builder::new().name(format!("chorus-kernel-{index}"));
            // Where one is refused, those before it end with the crew.
            crew.workers.push(thread.spawn(move || shared.work(index))?);
        }
        Ok(Self { crew: Arc::new(crew) })
    }

    /// Threads that a region runs on.
    pub fn threads(&self) -> usize {
        self.crew.workers.len() + 1
    }

    /// Runs `task(0)` to `task(tasks - 1)`, each once, on any thread, and returns when all are done.
    ///
    /// The caller alone runs them, in order, where there is one task or one thread, and where it is itself a task of a
    /// shared region: that region ends only with its tasks, so one that waited for its pool's threads would wait for ever.
    ///
    /// # Panics
    /// Where a task does: with the panic of one of those that did. In a shared region all parts are begun first; within a
    /// part, as where the caller runs alone, those behind it are not.
    pub fn run<F: Fn(usize) + Sync>(&self, tasks: usize, task: F) {
        self.run_parts((tasks, tasks.min(self.threads() * PARTS)), task);
    }

    /// The same for long tasks of different lengths, which should ascend: each is a part of its own, and in a shared region the
    /// last ones are begun first, so that threads end at about the same time.
    ///
    /// # Panics
    /// As [`Pool::run`] does.
    pub fn run_each<F: Fn(usize) + Sync>(&self, tasks: usize, task: F) {
        self.run_parts((tasks, tasks), task);
    }

    fn run_parts<F: Fn(usize) + Sync>(&self, (tasks, parts): (usize, usize), task: F) {
        if tasks <= 1 || self.crew.workers.is_empty() || IN_TASK.get() {
            (0..tasks).for_each(task);
            return;
        }
        let region = Region { tasks, parts, task };
        let _region = self.crew.region.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let shared = &*self.crew.shared;
        shared.data.store(std::ptr::from_ref(&region) as usize, Ordering::Relaxed);
        shared.code.store(call::<F> as Work as usize, Ordering::Relaxed);
        shared.open.0.store(parts, Ordering::Relaxed);
        let number = (shared.ticket.0.load(Ordering::Relaxed) >> 32).wrapping_add(1) & 0xffff_ffff;
        let parts = u64::from(u32::try_from(parts).expect("a half of the ticket"));
        // SeqCst: ordered before the reads of `parked`, as a worker's parking is before its read of the ticket.
        shared.ticket.0.store(number << 32 | parts, Ordering::SeqCst);
        for (parked, worker) in shared.parked.iter().zip(&self.crew.workers) {
            wake(parked, worker.thread());
        }
        while shared.take_one(number) {}
        let mut spins = 0_u32;
        while shared.open.0.load(Ordering::Acquire) > 0 {
            // The last parts run elsewhere; let their thread have this core if it needs it.
            spins += 1;
            if spins.is_multiple_of(256) { thread::yield_now() } else { std::hint::spin_loop() }
        }
        let panic = shared.panic.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

/// What is done in one call of [`Pool::run`] or [`Pool::run_each`].
struct Region<F> {
    tasks: usize,
    parts: usize,
    task: F,
}

impl<F: Fn(usize)> Region<F> {
    /// Runs the tasks of one part: consecutive ones, as many as of any other, give or take one.
    fn run(&self, part: usize) {
        let from = |part: usize| part * self.tasks / self.parts;
        (from(part)..from(part + 1)).for_each(&self.task);
    }
}

/// Runs a part of the region at `data`.
fn call<F: Fn(usize) + Sync>(data: usize, part: usize) {
    // SAFETY: `data` is the address of the `Region<F>` that `run_parts` keeps until every taken part is done, and only a taken part
    // gets here.
    let region = unsafe { &*(data as *const Region<F>) };
    region.run(part);
}

/// Parts not yet taken.
fn left(ticket: u64) -> u64 {
    ticket & 0xffff_ffff
}

fn wake(parked: &AtomicBool, thread: &Thread) {
    if parked.swap(false, Ordering::SeqCst) {
        thread.unpark();
    }
}

impl Shared {
    /// Takes and does one part of `region`; false when none is left or the region is over.
    fn take_one(&self, region: u64) -> bool {
        let mut ticket = self.ticket.0.load(Ordering::Acquire);
        loop {
            let left = left(ticket);
            if ticket >> 32 != region || left == 0 {
                return false;
            }
            // Read before the part is taken; valid only if the exchange then finds the ticket unchanged. While a part of a
            // region is left untaken, its `run_parts` has not returned, so the words cannot be of another region.
            let data = self.data.load(Ordering::Relaxed);
            let code = self.code.load(Ordering::Relaxed);
            let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
            match self.ticket.0.compare_exchange_weak(ticket, ticket - 1, success, failure) {
                Ok(_) => {
                    self.call(data, code, usize::try_from(left - 1).expect("came from a usize"));
                    return true;
                }
                Err(now) => ticket = now,
            }
        }
    }

    fn call(&self, data: usize, code: usize, part: usize) {
        // SAFETY: `code` was written by `run_parts` from a `Work`, and the exchange proved it belongs with `data`.
        let work = unsafe { std::mem::transmute::<*const (), Work>(code as *const ()) };
        // Never set already: whoever is in a task runs no shared region.
        IN_TASK.set(true);
        let done = catch_unwind(AssertUnwindSafe(|| work(data, part)));
        IN_TASK.set(false);
        if let Err(panic) = done {
            *self.panic.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(panic);
        }
        self.open.0.fetch_sub(1, Ordering::Release);
    }

    fn work(&self, index: usize) {
        let mut idle_since = None;
        while !self.ending.load(Ordering::Acquire) {
            let ticket = self.ticket.0.load(Ordering::SeqCst);
            if left(ticket) > 0 && self.take_one(ticket >> 32) {
                idle_since = None;
                continue;
            }
            // Looks often, because every region waits for its last thread to notice it; asks the clock rarely.
            let comes = (0..LOOKS).any(|_| {
                std::hint::spin_loop();
                left(self.ticket.0.load(Ordering::Relaxed)) > 0
            });
            if comes || idle_since.get_or_insert_with(Instant::now).elapsed() < SPIN {
                continue;
            }
            self.parked[index].store(true, Ordering::SeqCst);
            // Parts that came between the look and the flag would not wake us.
            if left(self.ticket.0.load(Ordering::SeqCst)) == 0
                && !self.ending.load(Ordering::SeqCst)
            {
                thread::park();
            }
            self.parked[index].store(false, Ordering::SeqCst);
            idle_since = None;
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker does not panic: tasks are caught.
            drop(worker.join());
        }
    }
}

/// A slice that the tasks of a region write in disjoint parts.
pub struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it only hands out parts, and whoever takes one promises that no other task has it.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<T> fmt::Debug for Disjoint<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Disjoint[{}]", self.len)
    }
}

impl<'a, T> Disjoint<'a, T> {
    /// Borrows the slice for the length of a region.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// A part of the slice.
    ///
    /// # Safety
    /// No other reference to any element of `range` may live as long as this one does.
    ///
    /// # Panics
    /// Where the range is not within the slice.
    #[expect(clippy::mut_from_ref, reason = "the caller promises that the parts are disjoint")]
    pub unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: in bounds by the assertion, unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn every_task_runs_once_whatever_the_threads() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            for tasks in [0, 1, 2, 7, 100, 1000] {
                let counts: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
                let count = |task: usize| {
                    counts[task].fetch_add(1, Ordering::Relaxed);
                };
                pool.run(tasks, count);
                pool.run_each(tasks, count);
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 2));
            }
        }
    }

    #[test]
    fn the_longest_of_long_tasks_are_begun_first() {
        let pool = Pool::new(2).unwrap();
        let begun = Mutex::new(Vec::new());
        let start = Instant::now();
        pool.run_each(2 * PARTS + 2, |task| {
            begun.lock().unwrap().push(task);
            // Both threads have begun one before either ends: if they were parts of one part, another would come in between.
            while task >= 2 * PARTS && begun.lock().unwrap().len() < 2 {
                assert!(start.elapsed() < Duration::from_mins(1), "nobody takes the other one");
                thread::yield_now();
            }
        });
        let begun = begun.into_inner().unwrap();
        assert!(begun[..2].iter().all(|task| *task >= 2 * PARTS), "{begun:?}");
    }

    #[test]
    fn regions_follow_each_other_while_workers_park_and_wake() {
        let pool = Pool::new(3).unwrap();
        for round in 0..3000_usize {
            let sum = AtomicUsize::new(0);
            pool.run(5, |task| {
                sum.fetch_add(task + round, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 10 + 5 * round);
            if round.is_multiple_of(500) {
                thread::park_timeout(SPIN * 4);
            }
        }
    }

    #[test]
    fn two_callers_take_turns() {
        let pool = Pool::new(2).unwrap();
        let sum = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(8, |_| {
                            sum.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 200 * 8);
    }

    #[test]
    fn a_task_that_panics_ends_its_region_and_not_the_pool() {
        let pool = Pool::new(2).unwrap();
        let caught = catch_unwind(AssertUnwindSafe(|| {
            pool.run(16, |task| assert!(task != 3, "task three"));
        }));
        assert!(caught.is_err());
        let done = AtomicUsize::new(0);
        pool.run(16, |_| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.into_inner(), 16);
    }

    #[test]
    fn a_caller_that_runs_alone_stops_at_a_panic() {
        let done = AtomicUsize::new(0);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            Pool::new(1).unwrap().run(4, |task| {
                assert!(task != 2, "task two");
                done.fetch_add(1, Ordering::Relaxed);
            });
        }));
        assert!(caught.is_err());
        assert_eq!(done.into_inner(), 2);
    }

    #[test]
    fn a_task_may_run_a_region_of_its_own() {
        let (pool, other) = (Pool::new(2).unwrap(), Pool::new(2).unwrap());
        for round in 0..100 {
            let done = AtomicUsize::new(0);
            let count = |_| {
                done.fetch_add(1, Ordering::Relaxed);
            };
            pool.run(8, |task| {
                // Of the same pool, of another, and of the same by way of another.
                pool.run(3, count);
                other.run(3, |_| pool.run(2, count));
                // One that panics leaves its thread able to run others.
                let panics = catch_unwind(AssertUnwindSafe(|| {
                    pool.run(2, |_| resume_unwind(Box::new(task)));
                }));
                assert!(panics.is_err());
            });
            assert_eq!(done.into_inner(), 8 * (3 + 6), "round {round}");
        }
    }
}
