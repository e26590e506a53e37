//! What is seen of a step while it is computed.

use std::{sync::mpsc, time::Duration};

use super::*;
use crate::engine::{Engine, Event, Finish, Job, Lane, Salt, Sampling, Scope};

/// A network whose step lasts until it is let go.
struct Held {
    begun: mpsc::Sender<()>,
    go: mpsc::Receiver<()>,
}

impl Forward for Held {
    fn vocab(&self) -> usize {
        2
    }

    fn hidden(&self) -> usize {
        1
    }

    fn context(&self) -> usize {
        16
    }

    fn forward(&mut self, batch: Batch<'_>) -> candle_core::Result<Results> {
        self.begun.send(()).unwrap();
        self.go.recv().unwrap();
        Ok(Results { logits: vec![0.0; batch.sample.len() * 2], ..Results::default() })
    }
}

#[tokio::test]
async fn a_request_is_counted_as_running_in_its_first_step() {
    let (begin, begun) = mpsc::channel();
    let (go, gone) = mpsc::channel();
    let settings = Settings {
        pages: 4,
        context: 16,
        step_tokens: 8,
        max_running: 2,
        max_waiting: 2,
        max_wait: Duration::MAX,
        slots: 1,
        keep_prefixes: true,
        guesses: 0,
    };
    let engine = Engine::over(Held { begun: begin, go: gone }, settings).unwrap();
    let job = Job {
        prompt: vec![1],
        adapter: None,
        sampling: Sampling::default(),
        max_tokens: 1,
        min_tokens: 0,
        guide: None,
        stop_tokens: Arc::new([]),
        logprobs: None,
        prompt_logprobs: None,
        pooling: None,
        lane: Lane::default(),
        scope: Scope::default(),
        salt: Salt::default(),
        deadline: None,
    };
    let mut stream = engine.submit(job).unwrap();
    begun.recv_timeout(Duration::from_secs(10)).unwrap();
    let stats = engine.stats();
    assert_eq!((stats.running, stats.waiting, stats.steps), (1, 0, 0));
    assert!(stats.pages_free < stats.pages_total);
    go.send(()).unwrap();
    while let Some(event) = stream.next().await {
        assert!(matches!(
            event,
            Event::Begun { .. } | Event::Token { .. } | Event::Finished(Finish::Length)
        ));
    }
    assert_eq!((engine.stats().running, engine.stats().steps), (0, 1));
}
