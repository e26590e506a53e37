//! The whole engine over a network that can be computed by hand.

mod company;
mod endings;
mod failures;
mod guesses;
mod guides;
mod on_device;
mod prefixes;
mod prompts;
mod refusals;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Allowed, Engine, Event, Failure, Finish, Guide, Job, Lane, Lost, Pooling, Refused, Salt,
    Sampling, Scope, Settings, Stats, TokenStream,
    fake::{self, Fake, Watch},
    sampler::{self, Limits, Sampler},
};

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
        guesses: 4,
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
