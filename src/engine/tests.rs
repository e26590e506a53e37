//! The whole engine over a network that can be computed by hand.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::{
    Allowed, Engine, Event, Failure, Finish, Guide, Job, Lane, Lost, Pooling, Refused, Salt,
    Sampling, Scope, Settings, Stats, TokenStream,
    fake::{self, Fake, Watch},
    sampler::{self, Limits, Sampler},
    step::{Batch, Forward, Results},
};
use crate::lora::Lease;

mod on_device;

/// A job that can be submitted more than once.
#[derive(Clone, Debug)]
struct Wish {
    prompt: Vec<u32>,
    adapter: Option<u8>,
    sampling: Sampling,
    max_tokens: usize,
    min_tokens: usize,
    /// Seed of a [`fake::Maze`].
    guide: Option<u64>,
    stop_tokens: Vec<u32>,
    logprobs: Option<usize>,
    prompt_logprobs: Option<usize>,
    pooling: Option<Pooling>,
    lane: u32,
    scope: u32,
}

impl Wish {
    fn of(prompt: &[u32], max_tokens: usize) -> Self {
        Self {
            prompt: prompt.to_vec(),
            adapter: None,
            sampling: Sampling::default(),
            max_tokens,
            min_tokens: 0,
            guide: None,
            stop_tokens: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
            pooling: None,
            lane: 0,
            scope: 0,
        }
    }

    fn job(&self) -> Job {
        Job {
            prompt: self.prompt.clone(),
            adapter: self.adapter.map(fake::lease),
            sampling: self.sampling.clone(),
            max_tokens: self.max_tokens,
            min_tokens: self.min_tokens,
            guide: self.maze().map(|maze| Box::new(maze) as Box<dyn Guide>),
            stop_tokens: self.stop_tokens.clone().into(),
            logprobs: self.logprobs,
            prompt_logprobs: self.prompt_logprobs,
            pooling: self.pooling,
            lane: Lane(self.lane),
            scope: Scope(self.scope),
            salt: Salt::default(),
            deadline: None,
        }
    }

    /// Faster than a step in one of two cases, slower in the other.
    fn maze(&self) -> Option<fake::Maze> {
        let pace = |seed| Duration::from_micros(if seed % 2 == 0 { 0 } else { 300 });
        self.guide.map(|seed| fake::Maze::new(seed, pace(seed)))
    }

    /// The plain reference: one token after the other, no pages, no batch, nobody else.
    fn alone(&self) -> Vec<Event> {
        let mut events = Vec::new();
        let mut tokens = self.prompt.clone();
        let mut sampler = Sampler::new(self.sampling.clone(), &tokens);
        let adapter = self.adapter.map(fake::digest);
        if let Some(pooling) = self.pooling {
            let pooled = pooled(&fake::states(&tokens, adapter), pooling);
            return vec![Event::Pooled(pooled), Event::Finished(Finish::Length)];
        }
        if let Some(top) = self.prompt_logprobs {
            let score = |end| {
                let logits = fake::logits(&tokens[..end], adapter);
                sampler::score(&logits, tokens[end], top).unwrap()
            };
            events.push(Event::Prompt((1..tokens.len()).map(score).collect()));
        }
        let (mut maze, mut last) = (self.maze(), None);
        for generated in 0..self.max_tokens {
            let logits = fake::logits(&tokens, adapter);
            let found = maze.as_mut().map(|maze| maze.after(last));
            let allowed = match found {
                None => None,
                Some(Ok(Allowed::Tokens(tokens))) => Some(tokens),
                Some(Ok(Allowed::Nothing)) => {
                    events.push(Event::Finished(Finish::Stop));
                    return events;
                }
                Some(Err(Lost)) => {
                    events.push(Event::Failed(Failure::Guide));
                    return events;
                }
            };
            let limits = Limits {
                allowed: allowed.as_ref(),
                stops: &self.stop_tokens,
                goes_on: generated < self.min_tokens,
            };
            let id = sampler.draw(&logits, &limits).unwrap();
            last = Some(id);
            if self.stop_tokens.contains(&id) {
                events.push(Event::Finished(Finish::Stop));
                return events;
            }
            let logprob = self.logprobs.map(|top| sampler::score(&logits, id, top).unwrap());
            events.push(Event::Token { id, logprob });
            tokens.push(id);
        }
        events.push(Event::Finished(Finish::Length));
        events
    }
}

/// All states at once, in the order of their positions.
fn pooled(states: &[Vec<f32>], pooling: Pooling) -> Vec<f32> {
    let states = if pooling == Pooling::Mean { states } else { &states[states.len() - 1..] };
    let sum = |at: usize| states.iter().fold(0.0, |sum, state| sum + f64::from(state[at]));
    let sums: Vec<f64> = (0..fake::HIDDEN).map(sum).collect();
    let length = sums.iter().fold(0.0, |squares, sum| squares + sum * sum).sqrt();
    #[expect(clippy::cast_possible_truncation, reason = "as the engine rounds it")]
    sums.iter().map(|sum| (sum / length) as f32).collect()
}

fn settings() -> Settings {
    Settings {
        pages: 64,
        context: usize::MAX,
        step_tokens: 32,
        max_running: 8,
        max_waiting: 64,
        max_wait: Duration::MAX,
        slots: 4,
        keep_prefixes: true,
    }
}

fn engine(settings: Settings) -> (Engine, Arc<Watch>) {
    let (network, watch) = Fake::new(settings.pages);
    (Engine::over(network, settings).unwrap(), watch)
}

/// All events behind the beginning.
async fn all(stream: TokenStream) -> Vec<Event> {
    all_and_cached(stream).await.0
}

/// And how much of the prompt need not be computed.
async fn all_and_cached(mut stream: TokenStream) -> (Vec<Event>, usize) {
    let (mut events, mut at_hand) = (Vec::new(), 0);
    while let Some(event) = stream.next().await {
        match event {
            Event::Begun { cached, .. } => {
                assert!(events.is_empty(), "the first of all");
                at_hand = cached;
            }
            event => events.push(event),
        }
    }
    (events, at_hand)
}

/// The numbers as soon as `ready` holds of them.
async fn stats_when(engine: &Engine, ready: impl Fn(&Stats) -> bool) -> Stats {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let stats = engine.stats();
        if ready(&stats) {
            return stats;
        }
        assert!(Instant::now() < deadline, "never: {stats:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn assert_nothing_held(stats: &Stats) {
    assert_eq!((stats.running, stats.waiting, stats.adapters_running), (0, 0, 0));
    assert_eq!(stats.pages_free, stats.pages_total);
}

fn wishes() -> impl Strategy<Value = Wish> {
    let sampling = (0..3_u8, any::<u64>()).prop_map(|(kind, seed)| match kind {
        0 => Sampling {
            temperature: 0.0,
            bias: [(3, 2.5), (9, -100.0)].into(),
            ..Sampling::default()
        },
        1 => Sampling { seed, top_k: 5, repetition_penalty: 1.3, ..Sampling::default() },
        _ => Sampling { seed, top_p: 0.8, frequency_penalty: 0.5, ..Sampling::default() },
    });
    // Some begin alike.
    let prompt =
        (0..90_usize, prop::collection::vec(0..fake::FAILS, 1..90)).prop_map(|(same, rest)| {
            let same = vec![7; same].into_iter();
            same.chain(rest).take(90).collect::<Vec<_>>()
        });
    (
        prop_oneof![prompt, prop::collection::vec(0..fake::FAILS, 1..90)],
        prop::option::of(0..5_u8),
        sampling,
        0..40_usize,
        prop::collection::vec(0..fake::FAILS, 0..3),
        prop::option::of(0..4_usize),
        prop::option::of(0..4_usize),
        (0..3_u32, 0..2_u32),
        (
            (0..20_usize, prop::option::of(any::<u64>())),
            prop_oneof![
                3 => Just(None),
                1 => Just(Some(Pooling::Mean)),
                1 => Just(Some(Pooling::Last)),
            ],
        ),
    )
        .prop_map(|parts| {
            let (prompt, adapter, sampling, max_tokens, stop_tokens, logprobs, scores, whose, form) =
                parts;
            let mut wish = Wish::of(&prompt, max_tokens);
            wish = Wish { adapter, sampling, stop_tokens, logprobs, ..wish };
            let ((min_tokens, guide), pooling) = form;
            wish = Wish { min_tokens, guide, pooling, ..wish };
            Wish { prompt_logprobs: scores, lane: whose.0, scope: whose.1, ..wish }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Chunks, neighbours, preemptions and their order leave no trace in what anybody gets.
    #[test]
    fn everybody_gets_what_they_would_get_alone(
        wishes in prop::collection::vec(wishes(), 1..16),
        (pages, step_tokens) in (9..24_usize, 1..80_usize),
        (max_running, slots, keep_prefixes) in (1..9_usize, 1..4_usize, any::<bool>()),
        room in prop::option::of(1..4_usize),
    ) {
        let settings = Settings { pages, context: usize::MAX, step_tokens, max_running, max_waiting: 64, max_wait: Duration::MAX, slots, keep_prefixes };
        let (network, watch) = Fake::with_room(pages, room);
        let engine = Engine::over(network, settings).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let streams: Vec<_> =
            wishes.iter().map(|wish| engine.submit(wish.job()).unwrap()).collect();
        let mut saved = 0;
        for (wish, stream) in wishes.iter().zip(streams) {
            let (events, cached) = runtime.block_on(all_and_cached(stream));
            prop_assert_eq!(events, wish.alone());
            prop_assert!(cached < wish.prompt.len() && (keep_prefixes || cached == 0));
            saved += cached as u64;
        }
        let stats = engine.stats();
        assert_nothing_held(&stats);
        prop_assert_eq!(stats.cached_tokens, saved);
        prop_assert_eq!(stats.ends.total(), wishes.len() as u64);
        prop_assert_eq!(
            stats.prompt_tokens,
            wishes.iter().map(|wish| wish.prompt.len() as u64).sum::<u64>()
        );
        prop_assert_eq!(stats.queue_seconds.count(), wishes.len() as u64);
        let seen = watch.seen();
        prop_assert!(seen.rows <= step_tokens && seen.adapters <= slots);
        prop_assert_eq!(seen.rows, stats.max_rows);
    }
}

#[tokio::test]
async fn a_full_pool_preempts_and_nobody_notices() {
    let (engine, watch) = engine(Settings { pages: 6, ..settings() });
    let wishes = [0, 1, 2].map(|token| {
        let sampling = Sampling { seed: u64::from(token), ..Sampling::default() };
        Wish { sampling, adapter: Some(1), ..Wish::of(&[token; 10], 60) }
    });
    // All three are there before the first of them has its second token: each wants five of the six pages.
    watch.halt_in(1);
    let streams = wishes.clone().map(|wish| engine.submit(wish.job()).unwrap());
    watch.release();
    for (wish, stream) in wishes.iter().zip(streams) {
        assert_eq!(all(stream).await, wish.alone());
    }
    let stats = engine.stats();
    assert!(stats.preemptions > 0);
    assert_eq!((stats.prompt_tokens, stats.generated_tokens), (30, 180), "each counted once");
}

#[tokio::test]
async fn who_begins_alike_is_computed_from_where_it_differs() {
    let (engine, watch) = engine(settings());
    let ask = async |wish: Wish| {
        let (events, cached) = all_and_cached(engine.submit(wish.job()).unwrap()).await;
        assert_eq!(events, wish.alone());
        cached
    };
    let prompt: Vec<u32> = (0..70).map(|at| at % 20).collect();
    let first = Wish::of(&prompt, 30);
    assert_eq!(ask(first.clone()).await, 0);
    let steps = watch.seen().steps;
    assert_eq!(ask(first.clone()).await, 64, "whole pages");
    assert_eq!(
        watch.seen().steps - steps,
        30,
        "a step for each token, the first with what is left of the prompt"
    );
    // A conversation goes on: the answer's own pages are of use too.
    let mut longer = prompt.clone();
    longer.extend(first.alone().iter().filter_map(|event| match event {
        Event::Token { id, .. } => Some(*id),
        _ => None,
    }));
    longer.push(3);
    assert_eq!(ask(Wish::of(&longer, 2)).await, 96);
    let mut other = prompt.clone();
    other[20] += 1;
    assert_eq!(ask(Wish::of(&other, 2)).await, 16, "up to the page that differs");
    assert_eq!(ask(Wish { adapter: Some(1), ..first.clone() }).await, 0, "another adapter's");
    assert_eq!(ask(Wish { scope: 1, ..first.clone() }).await, 0, "another scope's");
    assert_eq!(ask(Wish { prompt_logprobs: Some(1), ..first.clone() }).await, 0, "all are scored");
    assert_eq!(ask(Wish::of(&prompt[..64], 2)).await, 48, "the last token's logits are wanted");
    assert_eq!(engine.stats().cached_tokens, 64 + 96 + 16 + 48);
}

#[tokio::test]
async fn what_a_failed_step_leaves_is_nobodys_prefix() {
    let (engine, _) = engine(settings());
    for bad in [fake::FAILS, fake::PANICS] {
        let mut prompt = vec![bad - 20; 60];
        prompt.push(bad);
        let failed = all(engine.submit(Wish::of(&prompt, 9).job()).unwrap()).await;
        assert_eq!(failed, [Event::Failed(Failure::Step)]);
        let good = Wish::of(&prompt[..60], 30);
        let (events, cached) = all_and_cached(engine.submit(good.job()).unwrap()).await;
        assert_eq!((events, cached), (good.alone(), 32), "the first step of the prompt was right");
    }
}

#[tokio::test]
async fn prefixes_that_nobody_uses_make_room() {
    let (engine, _) = engine(Settings { pages: 8, ..settings() });
    for token in 0..20 {
        let wish = Wish::of(&[token; 100], 20);
        assert_eq!(all(engine.submit(wish.job()).unwrap()).await, wish.alone());
    }
    let stats = engine.stats();
    assert_nothing_held(&stats);
    assert_eq!((stats.preemptions, stats.cached_tokens), (0, 0));
    assert_eq!(stats.pages_idle, 7, "119 positions computed");
}

#[tokio::test]
async fn jobs_that_cannot_be_are_refused() {
    let (engine, _) = engine(Settings { pages: 2, ..settings() });
    assert_eq!(engine.context(), 32, "what the pages hold");
    let refused = |wish: Wish| engine.submit(wish.job()).unwrap_err();
    assert_eq!(refused(Wish::of(&[], 1)), Refused::BadPrompt { vocab: fake::VOCAB });
    assert_eq!(refused(Wish::of(&[1, 32], 1)), Refused::BadPrompt { vocab: fake::VOCAB });
    assert_eq!(refused(Wish::of(&[1; 3], 30)), Refused::TooLong { tokens: 33, context: 32 });
    let endless = refused(Wish::of(&[1], usize::MAX));
    assert_eq!(endless, Refused::TooLong { tokens: usize::MAX, context: 32 });
    assert_eq!(all(engine.submit(Wish::of(&[1; 2], 30).job()).unwrap()).await.len(), 31);
}

#[tokio::test]
async fn a_lane_that_fills_the_queue_leaves_room_for_another() {
    let (engine, watch) = engine(Settings { max_running: 8, max_waiting: 24, ..settings() });
    watch.halt_in(1);
    let mut streams = Vec::new();
    let mut fill = |lane| {
        let wish = Wish { lane, ..Wish::of(&[1], 2) };
        let before = streams.len();
        while let Ok(stream) = engine.submit(wish.job()) {
            streams.push((wish.clone(), stream));
        }
        streams.len() - before
    };
    assert_eq!([fill(0), fill(1), fill(2)], [28, 4, 0]);
    watch.release();
    for (wish, stream) in streams {
        assert_eq!(all(stream).await, wish.alone());
    }
}

#[tokio::test]
async fn the_queue_has_its_bound() {
    let (engine, watch) = engine(Settings { max_running: 1, max_waiting: 2, ..settings() });
    watch.halt_in(1);
    let wish = Wish::of(&[1], 2);
    let mut streams = Vec::new();
    let refused = loop {
        match engine.submit(wish.job()) {
            Ok(stream) => streams.push(stream),
            Err(refused) => break refused,
        }
    };
    watch.release();
    assert!(matches!(refused, Refused::Full { waiting: 2..=3 }), "{refused:?}");
    assert_eq!(streams.len(), 3, "one to run and two to wait");
    for stream in streams {
        assert_eq!(all(stream).await, wish.alone());
    }
}

#[tokio::test]
async fn an_engine_that_was_idle_keeps_nobody_waiting_for_its_pace() {
    let max_wait = Duration::from_millis(1);
    let (engine, _) = engine(Settings { max_running: 4, max_wait, ..settings() });
    let wish = Wish::of(&[1], 2);
    assert_eq!(all(engine.submit(wish.job()).unwrap()).await, wish.alone());
    // Longer than from which something is concluded.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    for _ in 0..3 {
        let streams: Vec<_> = (0..12).map(|_| engine.submit(wish.job()).unwrap()).collect();
        for stream in streams {
            assert_eq!(all(stream).await, wish.alone());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn who_would_wait_too_long_is_refused_and_others_are_not() {
    let max_wait = Duration::from_millis(500);
    let (engine, watch) = engine(Settings { max_running: 1, max_wait, ..settings() });
    let lane = |lane: u32| Wish { lane, ..Wish::of(&[1], 2) };
    watch.halt_in(1);
    let streams: Vec<_> = (0..3).map(|_| engine.submit(lane(0).job()).unwrap()).collect();
    watch.await_halt();
    // The next step is planned with all three there, and leaves two waiting for a second and more.
    watch.halt_in(1);
    watch.await_halt();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    watch.halt_in(1);
    watch.await_halt();
    let refused = engine.submit(lane(0).job()).unwrap_err();
    assert!(matches!(refused, Refused::Slow { wait, most, .. } if wait > most), "{refused:?}");
    watch.release();
    for stream in streams {
        assert_eq!(all(stream).await, lane(0).alone());
    }
    // Free places are nobody's to wait for.
    assert_eq!(all(engine.submit(lane(0).job()).unwrap()).await, lane(0).alone());
}

/// A lease that counts when it is returned.
fn counted(returned: &Arc<AtomicUsize>) -> Lease {
    let returned = Arc::clone(returned);
    Lease::new(fake::adapter(1), move || {
        returned.fetch_add(1, Ordering::SeqCst);
    })
}

#[tokio::test]
async fn a_dropped_stream_frees_all_it_held_wherever_it_is() {
    let (engine, watch) = engine(Settings { max_running: 1, ..settings() });
    let returned = Arc::new(AtomicUsize::new(0));
    let job =
        |prompt: &[u32]| Job { adapter: Some(counted(&returned)), ..Wish::of(prompt, 400).job() };
    watch.halt_in(3);
    let mut decoding = engine.submit(job(&[1])).unwrap();
    watch.await_halt();
    assert!(matches!(decoding.next().await, Some(Event::Begun { cached: 0, .. })));
    assert!(matches!(decoding.next().await, Some(Event::Token { .. })));
    let waiting = engine.submit(job(&[2])).unwrap();
    drop((decoding, waiting));
    watch.release();
    let stats = stats_when(&engine, |stats| stats.ends.cancelled == 2).await;
    assert_nothing_held(&stats);
    assert_eq!(returned.load(Ordering::SeqCst), 2);

    watch.halt_in(2);
    let prefilling = engine.submit(job(&[3; 100])).unwrap();
    watch.await_halt();
    drop(prefilling);
    watch.release();
    let stats = stats_when(&engine, |stats| stats.ends.cancelled == 3).await;
    assert_nothing_held(&stats);
    assert_eq!(returned.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn the_adapter_is_back_when_the_end_is_told() {
    let (engine, _) = engine(settings());
    let returned = Arc::new(AtomicUsize::new(0));
    let job = Job { adapter: Some(counted(&returned)), ..Wish::of(&[1], 3).job() };
    let mut stream = engine.submit(job).unwrap();
    while let Some(event) = stream.next().await {
        if matches!(event, Event::Finished(_)) {
            assert_eq!(returned.load(Ordering::SeqCst), 1);
            assert_eq!(engine.stats().ends.length, 1, "counted before it is told");
        }
    }
}

#[tokio::test]
async fn a_deadline_ends_a_job_and_no_other() {
    let (engine, _) = engine(settings());
    let other = Wish::of(&[2], 200);
    let stream = engine.submit(other.job()).unwrap();
    let late = Job { deadline: Some(Instant::now()), ..Wish::of(&[1], 400).job() };
    let late = engine.submit(late).unwrap();
    assert_eq!(all(late).await.pop(), Some(Event::Failed(Failure::Deadline)));
    assert_eq!(all(stream).await, other.alone());
    assert_eq!(engine.stats().ends.deadline, 1);
}

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

#[tokio::test]
async fn stopping_finishes_what_was_taken() {
    let (engine, _) = engine(settings());
    let wish = Wish::of(&[1], 100);
    let streams = [0; 12].map(|_| engine.submit(wish.job()).unwrap());
    engine.stop();
    assert_eq!(engine.submit(wish.job()).unwrap_err(), Refused::Stopping);
    engine.stopped().await;
    for stream in streams {
        assert_eq!(all(stream).await, wish.alone());
    }
    assert_eq!(engine.stats().ends.length, 12);
}

#[tokio::test]
async fn stopping_now_fails_the_rest() {
    let (engine, watch) = engine(Settings { max_running: 1, ..settings() });
    watch.halt_in(1);
    let streams = [0; 3].map(|_| engine.submit(Wish::of(&[1], 400).job()).unwrap());
    engine.stop_now();
    watch.release();
    for stream in streams {
        assert_eq!(all(stream).await.pop(), Some(Event::Failed(Failure::Stopping)));
    }
    engine.stopped().await;
    assert_nothing_held(&engine.stats());
}

#[tokio::test]
async fn the_last_handle_takes_the_engine_with_it() {
    let (engine, watch) = engine(settings());
    let other = engine.clone();
    let stream = engine.submit(Wish::of(&[1], 500).job()).unwrap();
    drop(engine);
    assert!(other.submit(Wish::of(&[1], 1).job()).is_ok());
    drop(other);
    assert_eq!(Arc::strong_count(&watch), 1, "the thread is gone, and its network");
    assert!(matches!(
        all(stream).await.pop(),
        Some(Event::Failed(Failure::Stopping) | Event::Finished(_))
    ));
}

#[tokio::test]
async fn a_prompt_alone_is_only_scored() {
    let (engine, _) = engine(settings());
    for prompt_logprobs in [None, Some(2)] {
        for prompt in [vec![1], vec![3; 70], (0..20).collect()] {
            let wish = Wish { prompt_logprobs, ..Wish::of(&prompt, 0) };
            assert_eq!(all(engine.submit(wish.job()).unwrap()).await, wish.alone());
        }
    }
    assert_eq!(engine.stats().generated_tokens, 0);
}

#[tokio::test]
async fn a_prompt_is_pooled_whole_and_its_pages_serve_others() {
    let (engine, watch) = engine(settings());
    let prompt: Vec<u32> = (0..70).map(|at| at % 20).collect();
    let ask = async |wish: Wish| {
        let (events, cached) = all_and_cached(engine.submit(wish.job()).unwrap()).await;
        assert_eq!(events, wish.alone());
        cached
    };
    let of = |pooling| Wish { pooling: Some(pooling), ..Wish::of(&prompt, 0) };
    assert_eq!(ask(of(Pooling::Mean)).await, 0);
    assert_eq!(ask(Wish::of(&prompt, 9)).await, 64, "pages are pages");
    assert_eq!(ask(of(Pooling::Mean)).await, 0, "each position's state is wanted");
    assert_eq!(ask(of(Pooling::Last)).await, 64, "only the last one's is");
    assert_eq!((watch.seen().pooled, watch.seen().sampled), (32, 1));
    let also = Wish { max_tokens: 9, prompt_logprobs: Some(1), ..of(Pooling::Mean) };
    assert_eq!(ask(also).await, 0, "nothing is generated or scored");
    let bad = Wish { pooling: Some(Pooling::Mean), ..Wish::of(&[1, fake::OVERFLOWS, 2], 0) };
    let told = all(engine.submit(bad.job()).unwrap()).await;
    assert_eq!(told, [Event::Failed(Failure::NotANumber)]);
    let stats = engine.stats();
    assert_nothing_held(&stats);
    assert_eq!((stats.generated_tokens, stats.decode_seconds.count()), (9, 1));
}

#[tokio::test]
async fn steps_mix_adapters_prompts_and_answers() {
    let (engine, _) = engine(settings());
    let wish = |adapter, length| Wish { adapter: Some(adapter), ..Wish::of(&vec![1; length], 20) };
    let first = [0, 1, 2, 3].map(|adapter| wish(adapter, 2).job());
    let second = [0, 1, 2].map(|adapter| wish(adapter, 60).job());
    // All are there before the first step.
    let streams = engine.submit_all(first.into_iter().chain(second).collect()).unwrap();
    for stream in streams {
        assert_eq!(all(stream).await.len(), 21);
    }
    let stats = engine.stats();
    assert!(stats.mixed_steps > 0 && stats.max_rows == 32, "{stats:?}");
    assert_eq!((stats.decode_seconds.count(), stats.prefill_seconds.count()), (7, 7));
    assert_eq!(stats.step_seconds.count(), stats.steps);
}

/// Panics, or thinks until it is let go.
#[derive(Debug)]
enum Trying {
    Panics,
    Waits(std::sync::mpsc::Receiver<()>),
}

impl Guide for Trying {
    fn after(&mut self, _: Option<u32>) -> Result<Allowed, Lost> {
        match self {
            Self::Panics => panic!("a guide that panics"),
            Self::Waits(go) => {
                go.recv_timeout(Duration::from_secs(20)).map_err(|_| Lost)?;
                Ok(Allowed::Nothing)
            }
        }
    }
}

#[tokio::test]
async fn a_guide_that_panics_ends_its_own_answer() {
    let (engine, _) = engine(settings());
    let guide = Some(Box::new(Trying::Panics) as _);
    let guided = engine.submit(Job { guide, ..Wish::of(&[1], 9).job() }).unwrap();
    let other = Wish { guide: Some(3), ..Wish::of(&[2], 9) };
    let neighbour = engine.submit(other.job()).unwrap();
    assert_eq!(all(guided).await, [Event::Failed(Failure::Guide)]);
    assert_eq!(all(neighbour).await, other.alone());
    assert_eq!(
        engine.stats().ends.guide,
        1 + u64::from(other.alone() == [Event::Failed(Failure::Guide)])
    );
    assert_nothing_held(&engine.stats());
}

#[tokio::test]
async fn a_guide_that_thinks_holds_nobody_up_and_no_answer_is_lost() {
    let (engine, _) = engine(settings());
    let (go, gone) = std::sync::mpsc::channel();
    let guide = Some(Box::new(Trying::Waits(gone)) as _);
    let guided = engine.submit(Job { guide, ..Wish::of(&[1], 9).job() }).unwrap();
    // Its logits are there by now, and it stands back.
    let other = Wish::of(&[2], 60);
    assert_eq!(all(engine.submit(other.job()).unwrap()).await, other.alone());
    stats_when(&engine, |stats| stats.running == 1).await;
    go.send(()).unwrap();
    assert_eq!(all(guided).await, [Event::Finished(Finish::Stop)]);
    assert_nothing_held(&engine.stats());
}

#[tokio::test]
async fn who_leaves_while_the_guide_thinks_leaves_nothing_behind() {
    let (engine, _) = engine(settings());
    let (go, gone) = std::sync::mpsc::channel();
    let guide = Some(Box::new(Trying::Waits(gone)) as _);
    drop(engine.submit(Job { guide, ..Wish::of(&[1], 9).job() }).unwrap());
    go.send(()).unwrap();
    let stats = stats_when(&engine, |stats| stats.ends.cancelled == 1).await;
    assert_nothing_held(&stats);
}

#[tokio::test]
async fn an_engine_stops_although_a_guide_thinks() {
    let (engine, _) = engine(settings());
    let (_go, gone) = std::sync::mpsc::channel();
    let guide = Some(Box::new(Trying::Waits(gone)) as _);
    let guided = engine.submit(Job { guide, ..Wish::of(&[1], 9).job() }).unwrap();
    stats_when(&engine, |stats| stats.running == 1).await;
    engine.stop_now();
    engine.stopped().await;
    assert_eq!(all(guided).await, [Event::Failed(Failure::Stopping)]);
}

#[tokio::test]
async fn salts_keep_prefixes_apart() {
    let (engine, _) = engine(settings());
    let prompt: Vec<u32> = (0..70).map(|at| at % 20).collect();
    let ask = async |salt: u8| {
        let job = Job { salt: Salt([salt; 32]), ..Wish::of(&prompt, 1).job() };
        all_and_cached(engine.submit(job).unwrap()).await.1
    };
    assert_eq!([ask(0).await, ask(1).await, ask(1).await, ask(0).await], [0, 0, 64, 64]);
}
