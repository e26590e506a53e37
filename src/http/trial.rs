//! Tries an adapter that nobody else can see yet.

use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, try_join};

use super::app::App;
use crate::{
    adapter::{Lease, Trial, Unproved},
    engine::{Event, Failure, Job, Lane, Logprob, Sampling, Scope},
};

/// Tokens that are computed: enough that whatever an adapter changes shows somewhere.
const TOKENS: u32 = 16;
/// The likeliest tokens that are compared beside each.
const LIKELIEST: usize = 5;
/// How long a trial may wait and take. It stands in line like other requests.
const TIME: Duration = Duration::from_mins(1);

/// Compares an adapter with the base on the engine that will run it.
pub(super) struct EngineTrial<'a> {
    app: &'a App,
}

impl<'a> EngineTrial<'a> {
    pub(super) fn new(app: &'a App) -> Self {
        Self { app }
    }

    /// Scores of a fixed prompt, through the adapter or without one.
    async fn scores(&self, adapter: Option<Lease>) -> Result<Vec<Logprob>, Unproved> {
        let vocab = u32::try_from(self.app.text().vocab()).unwrap_or(u32::MAX).max(1);
        let job = Job {
            // Spread over the vocabulary; a small one has each token more often.
            prompt: (0..TOKENS).map(|at| (at + 1).wrapping_mul(2_654_435_761) % vocab).collect(),
            adapter,
            sampling: Sampling { temperature: 0.0, ..Sampling::default() },
            max_tokens: 1,
            stop_tokens: [].into(),
            logprobs: Some(LIKELIEST),
            prompt_logprobs: Some(LIKELIEST),
            // In nobody's line, and for nobody to find.
            lane: Lane(u32::MAX),
            scope: Scope(u32::MAX),
            deadline: Some(Instant::now() + TIME),
        };
        let not_now = |why: String| Unproved::NotNow(why);
        let submitted = self.app.generator().submit(job);
        let mut events = submitted.map_err(|refused| not_now(refused.to_string()))?;
        let mut scores = Vec::new();
        while let Some(event) = events.next().await {
            match event {
                Event::Prompt(prompt) => scores.extend(prompt),
                Event::Token { logprob, .. } => scores.extend(logprob),
                Event::Finished(_) => return Ok(scores),
                Event::Failed(Failure::NotANumber) => return Err(Unproved::NotFinite),
                Event::Failed(failure) => return Err(not_now(failure.to_string())),
                Event::Begun { .. } => {}
            }
        }
        Err(not_now("the engine has ended".to_owned()))
    }
}

impl Trial for EngineTrial<'_> {
    fn probe(&self, adapter: Lease) -> BoxFuture<'_, Result<(), Unproved>> {
        Box::pin(async move {
            let (base, adapted) = try_join(self.scores(None), self.scores(Some(adapter))).await?;
            let finite = |score: &Logprob| score.logprob.is_finite();
            if !adapted.iter().all(finite) {
                return Err(Unproved::NotFinite);
            }
            // Bit for bit, because the base computes the same bits each time.
            if base == adapted { Err(Unproved::NoEffect) } else { Ok(()) }
        })
    }
}
