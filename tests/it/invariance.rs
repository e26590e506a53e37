//! A request's tokens and log-probabilities are bit for bit the same alone and in any company.

use std::{sync::Arc, time::Duration};

use chorus::{
    engine::{
        Engine, Event, Finish, Job, Lane, Pooling, Salt, Sampling, Scope, Settings, TokenStream,
    },
    kernels::linear::Precision,
    lora::{Adapter, Lease, Matrices},
    model::{KvType, Llama, PAGE},
};
use serde_json::Value;

use crate::world::{adapter, base_gguf, fixtures, folders, json, name, shipped_adapters, tier};

const REQUESTS: usize = 64;
/// Further ones, whose prompts are pooled and not continued.
const POOLED: usize = 16;
/// How often all requests are made with each shape of the engine at most; once is nearly always enough.
const ROUNDS: u64 = 5;
/// Longer than anything here takes; reached only by a test that fails.
const LONG: Duration = Duration::from_mins(2);

/// The default base as it is served.
fn load(threads: usize) -> Llama {
    Llama::load(&base_gguf(), tier(), threads, Precision::default()).unwrap()
}

/// A request that can be made again.
struct Request {
    prompt: Vec<u32>,
    adapter: Option<Arc<Adapter>>,
    sampling: Sampling,
    max_tokens: usize,
    prompt_logprobs: Option<usize>,
    pooling: Option<Pooling>,
}

impl Request {
    fn job(&self) -> Job {
        Job {
            prompt: self.prompt.clone(),
            adapter: self.adapter.clone().map(|adapter| Lease::new(adapter, || ())),
            sampling: self.sampling.clone(),
            max_tokens: self.max_tokens,
            min_tokens: 0,
            guide: None,
            stop_tokens: Arc::new([]),
            logprobs: Some(3),
            prompt_logprobs: self.prompt_logprobs,
            pooling: self.pooling,
            lane: Lane::default(),
            scope: Scope::default(),
            salt: Salt::default(),
            deadline: None,
        }
    }
}

/// Prompts of the references through base and eight adapters in turn, greedy and sampled, some of them pooled.
fn requests(llama: &Llama) -> Vec<Request> {
    let mut voices = vec![(None, "base".to_owned())];
    // Every second one in eight bits, whose neighbours are then of other types.
    let types = [Matrices::Native, Matrices::Int8].into_iter().cycle();
    for (folder, matrices) in folders(&shipped_adapters()).iter().zip(types) {
        voices.push((Some(adapter(folder, llama, matrices).unwrap()), name(folder).to_owned()));
    }
    let prompts = |voice: &str| -> Vec<Vec<u32>> {
        let file = json(&fixtures().join(format!("smollm2/reference/{voice}.json")));
        let ids = |prompt: &Value| serde_json::from_value(prompt["prompt_ids"].clone()).unwrap();
        file["prompts"].as_array().unwrap().iter().map(ids).collect()
    };
    let prompts: Vec<_> = voices.iter().map(|(_, voice)| prompts(voice)).collect();
    let request = |index: usize| {
        let voice = index % voices.len();
        let mut prompt = prompts[voice][index / voices.len() % prompts[voice].len()].clone();
        let pooled = index.checked_sub(REQUESTS);
        if index % 16 == 5 || pooled.is_some_and(|index| index % 8 == 0) {
            // A longer one, so that chunks of prompts meet decodes.
            prompt = prompts.iter().flat_map(|all| all[0].clone()).take(200).collect();
        }
        let seed = index as u64;
        let sampling = match index % 3 {
            0 => Sampling { temperature: 0.0, ..Sampling::default() },
            1 => Sampling { temperature: 0.9, top_p: 0.9, seed, ..Sampling::default() },
            _ => Sampling {
                top_k: 40,
                min_p: 0.02,
                repetition_penalty: 1.1,
                presence_penalty: 0.3,
                frequency_penalty: 0.2,
                seed,
                ..Sampling::default()
            },
        };
        Request {
            prompt,
            adapter: voices[voice].0.clone(),
            sampling,
            // Some go on long enough to outgrow the pages that they began with.
            max_tokens: if index % 4 == 2 { 60 } else { 8 + index % 9 },
            prompt_logprobs: (index % 8 == 3).then_some(2),
            pooling: pooled.map(|index| [Pooling::Mean, Pooling::Last][index % 2]),
        }
    };
    (0..REQUESTS + POOLED).map(request).collect()
}

/// All events; floats are compared by their bits.
async fn collect(mut stream: TokenStream) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(event) = stream.next().await {
        events.push(event);
    }
    assert_eq!(events.last(), Some(&Event::Finished(Finish::Length)));
    events
}

fn bits(events: &[Event]) -> Vec<(u32, u32)> {
    let score = |score: &chorus::engine::Logprob| {
        let top = score.top.iter().map(|(id, logprob)| (*id, logprob.to_bits()));
        std::iter::once((score.token, score.logprob.to_bits())).chain(top).collect::<Vec<_>>()
    };
    let of = |event: &Event| match event {
        Event::Prompt(scores) => scores.iter().flat_map(score).collect(),
        Event::Pooled(vector) => vector.iter().map(|number| (0, number.to_bits())).collect(),
        Event::Token { logprob, .. } => score(logprob.as_ref().unwrap()),
        Event::Begun { .. } | Event::Finished(_) | Event::Failed(_) => Vec::new(),
    };
    events.iter().flat_map(of).collect()
}

/// Returns when the engine has done so many steps in all, or has nothing to do.
async fn steps_done(engine: &Engine, steps: u64) {
    let done = async {
        loop {
            let stats = engine.stats();
            if stats.steps >= steps || stats.running + stats.waiting == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LONG, done).await.expect("the engine goes on");
}

/// Submits all requests in an order and in bursts that the seed decides, each some steps after the one before.
async fn together(engine: &Engine, requests: &[Request], seed: u64) -> Vec<Vec<Event>> {
    let mut state = seed;
    let mut draw = |below: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut order: Vec<usize> = (0..requests.len()).collect();
    for at in (1..order.len()).rev() {
        order.swap(at, usize::try_from(draw(at as u64 + 1)).unwrap());
    }
    let mut running = Vec::new();
    let mut burst = 0;
    for index in order {
        running.push((index, tokio::spawn(collect(engine.submit(requests[index].job()).unwrap()))));
        if burst == 0 {
            steps_done(engine, engine.stats().steps + draw(4)).await;
            burst = 4 + draw(20);
        }
        burst -= 1;
    }
    let mut answers = vec![Vec::new(); requests.len()];
    for (index, answer) in running {
        answers[index] = answer.await.unwrap();
    }
    answers
}

/// How requests meet: (threads, rows of a step, sequences at once, pages, guesses); with guesses the last would never be out of
/// pages.
type Meeting = (usize, usize, usize, usize, usize);
const MEETINGS: [Meeting; 4] =
    [(1, 48, 64, 1024, 7), (2, 256, 32, 1024, 7), (3, 17, 16, 1024, 15), (2, 64, 24, 28, 0)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_gets_the_bits_it_gets_alone() {
    bits_do_not_depend_on_company(KvType::F16, &MEETINGS).await;
}

/// Codes are written into words that hold those of other positions and dimensions; guesses that were wrong are written over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_gets_the_bits_it_gets_alone_from_eight_bit_keys() {
    bits_do_not_depend_on_company(KvType::Int8, &MEETINGS[2..3]).await;
}

async fn bits_do_not_depend_on_company(kv: KvType, meetings: &[Meeting]) {
    let settings = Settings {
        pages: 1024,
        context: 1024,
        step_tokens: 256,
        max_running: 64,
        max_waiting: 128,
        max_wait: Duration::MAX,
        slots: 16,
        keep_prefixes: false,
        guesses: 0,
    };
    let alone = Arc::new(load(2));
    let requests = requests(&alone);
    let engine = Engine::start(alone, kv, settings).unwrap();
    let mut want = Vec::new();
    for request in &requests {
        want.push(bits(&collect(engine.submit(request.job()).unwrap()).await));
    }
    drop(engine);
    for (shape, (threads, step_tokens, max_running, pages, guesses)) in
        (0..).zip(meetings.iter().copied())
    {
        let what =
            format!("{threads} threads, {step_tokens} rows, {max_running} at once, {pages} pages");
        let llama = Arc::new(load(threads));
        let settings =
            Settings { pages, step_tokens, max_running, keep_prefixes: true, guesses, ..settings };
        assert!(pages * PAGE >= 300, "the longest request fits");
        let engine = Engine::start(llama, kv, settings).unwrap();
        // How requests meet is the threads' business: again, until they have met as is meant here.
        let mut met = false;
        for round in 0..ROUNDS {
            let got = together(&engine, &requests, shape * ROUNDS + round).await;
            for (index, (got, want)) in got.iter().zip(&want).enumerate() {
                assert_eq!(&bits(got), want, "request {index} with {what}");
            }
            let stats = engine.stats();
            // A mixed step has 8 or more rows of 4 or more adapters, prompts and decodes together.
            met = stats.mixed_steps > 0
                && stats.cached_tokens > 0
                && (pages >= 1024 || stats.preemptions > 0);
            if met {
                break;
            }
        }
        assert!(
            met,
            "never mixed, no prefix used or never out of pages: {:?} with {what}",
            engine.stats()
        );
        // One after the other, so that much is guessed of what the same requests were answered before.
        if max_running == 32 {
            let before = engine.stats();
            for (index, (request, want)) in requests.iter().zip(&want).enumerate() {
                let got = collect(engine.submit(request.job()).unwrap()).await;
                assert_eq!(&bits(&got), want, "request {index} with guesses");
            }
            let after = engine.stats();
            let right = after.foreseen_tokens - before.foreseen_tokens;
            let wrong = after.guessed_tokens - before.guessed_tokens - right;
            assert!(right > 100 && wrong > 0, "{right} right guesses and {wrong} wrong ones");
        }
    }
}
