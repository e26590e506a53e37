//! Steps that fail or panic, and rows that are no numbers.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::engine::step::{Batch, Forward, Results};

#[tokio::test]
async fn a_step_that_fails_or_panics_takes_only_its_own() {
    let (engine, _) = engine(settings());
    for token in [fake::FAILS, fake::PANICS] {
        let bad = engine.submit(Wish::of(&[1, token], 3).job()).unwrap();
        assert_eq!(all(bad).await, [Event::Failed(Failure::Step)]);
        let good = Wish::of(&[1, 2], 3);
        assert_eq!(all(engine.submit(good.job()).unwrap()).await, good.alone());
    }
    let stats = engine.stats();
    assert_eq!((stats.ends.step, stats.ends.length), (2, 2));
    assert_nothing_held(&stats);
}

#[tokio::test]
async fn neighbours_in_a_step_that_panics_are_told_and_those_behind_it_are_served() {
    let (engine, watch) = engine(Settings { max_running: 2, ..settings() });
    let good = Wish { adapter: Some(1), ..Wish::of(&[1, 2], 9) };
    watch.halt_in(1);
    let first = engine.submit(good.job()).unwrap();
    watch.await_halt();
    let bad = engine.submit(Wish::of(&[1, fake::PANICS], 9).job()).unwrap();
    let behind = engine.submit(good.job()).unwrap();
    watch.release();
    let mut told = all(first).await;
    assert_eq!(told.pop(), Some(Event::Failed(Failure::Step)));
    assert!(good.alone().starts_with(&told) && !told.is_empty(), "what came before is right");
    assert_eq!(all(bad).await, [Event::Failed(Failure::Step)]);
    assert_eq!(all(behind).await, good.alone());
    let stats = engine.stats();
    assert_eq!((stats.ends.step, stats.ends.length), (2, 1));
    assert_nothing_held(&stats);
}

/// Panics in one of so many steps: by turns while it computes, which a step survives alone, and behind that.
struct Shaky {
    sound: Fake,
    every: u64,
    steps: u64,
    breaks: AtomicBool,
}

impl Shaky {
    fn new(every: u64) -> Self {
        let (sound, _) = Fake::new(settings().pages);
        Self { sound, every, steps: 0, breaks: AtomicBool::new(false) }
    }
}

impl Forward for Shaky {
    fn vocab(&self) -> usize {
        assert!(!self.breaks.swap(false, Ordering::Relaxed), "as the test wished");
        self.sound.vocab()
    }

    fn hidden(&self) -> usize {
        self.sound.hidden()
    }

    fn context(&self) -> usize {
        self.sound.context()
    }

    fn forward(&mut self, batch: Batch<'_>) -> candle_core::Result<Results> {
        self.steps += 1;
        let results = self.sound.forward(batch);
        let (turn, rest) = (self.steps / self.every, self.steps % self.every);
        assert!(rest > 0 || turn.is_multiple_of(2), "as the test wished");
        *self.breaks.get_mut() = rest == 0;
        results
    }
}

#[tokio::test]
async fn an_engine_that_panics_gives_up_what_has_begun_and_lives() {
    let one_at_a_time = Settings { max_running: 1, ..settings() };
    // The second step is computed, and what comes behind it panics. Two more are in line then.
    let engine = Engine::over(Shaky { steps: 1998, ..Shaky::new(1000) }, one_at_a_time).unwrap();
    let wish = Wish { adapter: Some(1), guide: Some(4), ..Wish::of(&[1; 40], 9) };
    let streams = [(); 3].map(|()| engine.submit(wish.job()).unwrap());
    let [first, second, third] = streams;
    assert_eq!(all(first).await, [Event::Failed(Failure::Step)]);
    assert_eq!(all(second).await, wish.alone());
    assert_eq!(all(third).await, wish.alone());
    let stats = engine.stats();
    assert_eq!((stats.restarts, stats.ends.step, stats.ends.total()), (1, 1, 3));
    assert_nothing_held(&stats);
}

/// Whoever is in a step that panics is told so, and whoever is not gets what they would get alone: also those in line.
#[tokio::test]
async fn a_panic_in_one_of_a_hundred_steps_fails_nobody_else() {
    const EVERY: u64 = 100;
    let engine = Engine::over(Shaky::new(EVERY), settings()).unwrap();
    let running = settings().max_running as u64;
    let mut failed = 0;
    for round in 0..25_u32 {
        let wishes = (0..24_u32).map(|each| {
            let sampling = Sampling { seed: u64::from(each), ..Sampling::default() };
            let adapter = u8::try_from(each % 4).ok().filter(|id| *id > 0);
            let prompt: Vec<u32> = (0..=each).map(|at| (at * at + round) % fake::FAILS).collect();
            Wish { adapter, sampling, ..Wish::of(&prompt, 30) }
        });
        let wishes: Vec<_> = wishes.collect();
        let streams: Vec<_> =
            wishes.iter().map(|wish| engine.submit(wish.job()).unwrap()).collect();
        for (wish, stream) in wishes.iter().zip(streams) {
            let (mut told, right) = (all(stream).await, wish.alone());
            if told.last() == Some(&Event::Failed(Failure::Step)) {
                told.pop();
                failed += 1;
                assert!(right.starts_with(&told), "what came before is right");
            } else {
                assert_eq!(told, right);
            }
        }
    }
    let stats = stats_when(&engine, |stats| stats.ends.total() == 25 * 24).await;
    // By turns: of an odd number one more panics while it computes.
    let panics = stats.restarts * 2 + 1;
    assert!(stats.restarts >= 5 && stats.steps > panics.saturating_sub(2) * EVERY, "{stats:?}");
    assert_eq!(stats.ends.step, failed);
    assert!((1..=panics * running).contains(&failed), "{failed} of at most {panics} steps");
    assert_nothing_held(&stats);
}

#[tokio::test]
async fn overflow_ends_the_row_and_not_its_neighbours() {
    let (engine, watch) = engine(settings());
    let good = Wish::of(&[1, 2], 30);
    watch.halt_in(1);
    let streams = [good.clone(), Wish::of(&[1, fake::OVERFLOWS], 30), good.clone()]
        .map(|wish| engine.submit(wish.job()).unwrap());
    watch.release();
    let [first, bad, last] = streams;
    assert_eq!(all(bad).await, [Event::Failed(Failure::NotANumber)]);
    assert_eq!(all(first).await, good.alone());
    assert_eq!(all(last).await, good.alone());
}
