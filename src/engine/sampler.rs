//! Logits -> token. Every decision is a function of one row, its request and its generator.
//!
//! Weights are whole numbers ([`weight`](weights::weight)), so that sums do not depend on the order of adding; and order among tokens is
//! total. So any way to find the tokens to choose from gives the same ones, and none of them has to sort the vocabulary.

mod choice;
mod logprobs;
mod weights;

use std::collections::HashMap;

use self::choice::{Candidate, Choice, pick};
pub(crate) use self::logprobs::score;
use super::{guide::TokenSet, job::Sampling, rng::Rng};

/// The row has a value that is not a number or infinite, or nothing that could be chosen.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotANumber;

/// Draws the tokens of one request.
#[derive(Debug)]
pub(crate) struct Sampler {
    sampling: Sampling,
    rng: Rng,
    /// Tokens of prompt and answer with their counts in the answer; empty where no penalty needs them.
    counts: HashMap<u32, u32>,
    /// Logits after biases and penalties, of what may be drawn. Kept from token to token for its memory alone, as the next two.
    scores: Vec<f32>,
    candidates: Vec<Candidate>,
    pool: Vec<Candidate>,
}

/// What may be drawn at one place, whatever its score.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits<'a> {
    /// Only these, where somebody guides the answer, and the stop tokens where it may end.
    pub(crate) allowed: Option<&'a TokenSet>,
    /// The job's stop tokens.
    pub(crate) stops: &'a [u32],
    /// The answer is too short yet: no stop token, unless nothing else may be drawn.
    pub(crate) goes_on: bool,
}

impl Limits<'_> {
    fn bind(&self) -> bool {
        self.allowed.is_some() || (self.goes_on && !self.stops.is_empty())
    }
}

impl Sampler {
    /// The sampler of a request with this prompt.
    pub(crate) fn new(sampling: Sampling, prompt: &[u32]) -> Self {
        let mut sampler = Self {
            rng: Rng::new(sampling.seed),
            sampling,
            counts: HashMap::new(),
            scores: Vec::new(),
            candidates: Vec::new(),
            pool: Vec::new(),
        };
        if sampler.penalizes() {
            sampler.counts.extend(prompt.iter().map(|id| (*id, 0)));
        }
        sampler
    }

    /// The next token after a row of logits `[vocab]`. Takes one random number unless the temperature is 0.
    pub(crate) fn draw(&mut self, logits: &[f32], limits: &Limits<'_>) -> Result<u32, NotANumber> {
        let mut best = best(logits)?;
        let mut scores = logits;
        if self.penalizes() || !self.sampling.bias.is_empty() || limits.bind() {
            self.scores.clear();
            self.scores.extend_from_slice(logits);
            self.lean();
            self.penalize();
            self.limit(limits);
            scores = &self.scores;
            best = self::best(scores)?;
        }
        let id = if self.sampling.temperature > 0.0 {
            let choice = Choice { sampling: &self.sampling, scores, best };
            choice.gather(&mut self.candidates, &mut self.pool);
            pick(&self.candidates, self.rng.unit())
        } else {
            (0..).zip(scores).find(|(_, score)| **score >= best).map(|(id, _)| id)
        };
        let id = id.ok_or(NotANumber)?;
        if self.penalizes() {
            *self.counts.entry(id).or_default() += 1;
        }
        Ok(id)
    }

    /// Whether the token of the greatest logit is drawn, whatever the logits are.
    pub(crate) fn is_greedy(&self, limits: &Limits<'_>) -> bool {
        let plain = self.sampling.bias.is_empty() && !self.penalizes() && !limits.bind();
        plain && self.sampling.temperature <= 0.0
    }

    fn penalizes(&self) -> bool {
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } =
            self.sampling;
        (repetition_penalty, presence_penalty, frequency_penalty) != (1.0, 0.0, 0.0)
    }

    /// Adds to the scores of single tokens what the request says.
    fn lean(&mut self) {
        for (id, bias) in &*self.sampling.bias {
            if let Some(score) = score_of(&mut self.scores, *id) {
                *score += bias;
            }
        }
    }

    /// Lowers the scores of tokens in prompt and answer.
    fn penalize(&mut self) {
        let sampling = &self.sampling;
        for (id, count) in &self.counts {
            let Some(score) = score_of(&mut self.scores, *id) else { continue };
            *score = if *score > 0.0 {
                *score / sampling.repetition_penalty
            } else {
                *score * sampling.repetition_penalty
            };
            if *count > 0 {
                *score -= sampling.presence_penalty + sampling.frequency_penalty * *count as f32;
            }
            // A penalty can make a token unlikely or likely, never impossible or infinite.
            *score = score.clamp(f32::MIN, f32::MAX);
        }
    }

    /// Makes impossible what may not be drawn.
    fn limit(&mut self, Limits { allowed, stops, goes_on }: &Limits<'_>) {
        let ends = self.scores_of(stops);
        if let Some(allowed) = allowed {
            for (id, score) in self.scores.iter_mut().enumerate() {
                if !allowed.has(id) {
                    *score = f32::NEG_INFINITY;
                }
            }
            if allowed.may_end {
                self.restore(&ends);
            }
        }
        if *goes_on {
            let ends = self.scores_of(stops);
            for (id, _) in &ends {
                self.scores[*id] = f32::NEG_INFINITY;
            }
            if maximum(&self.scores) == f32::NEG_INFINITY {
                self.restore(&ends);
            }
        }
    }

    /// Those of these tokens that can be drawn, and their scores.
    fn scores_of(&self, ids: &[u32]) -> Vec<(usize, f32)> {
        let ids = ids.iter().filter_map(|id| usize::try_from(*id).ok());
        let scored = ids.filter_map(|id| Some((id, *self.scores.get(id)?)));
        scored.filter(|(_, score)| score.is_finite()).collect()
    }

    fn restore(&mut self, scores: &[(usize, f32)]) {
        for (id, score) in scores {
            self.scores[*id] = *score;
        }
    }
}

/// A token's score, unless it cannot be drawn: what is masked stays masked.
fn score_of(scores: &mut [f32], id: u32) -> Option<&mut f32> {
    let score = usize::try_from(id).ok().and_then(|id| scores.get_mut(id));
    score.filter(|score| score.is_finite())
}

/// The highest logit of a row from which something can be chosen, and all of which can be compared.
fn best(logits: &[f32]) -> Result<f32, NotANumber> {
    let best = maximum(logits);
    let comparable = !logits.iter().fold(false, |bad, logit| bad | logit.is_nan());
    if comparable && best.is_finite() { Ok(best) } else { Err(NotANumber) }
}

/// The highest of them, passing over NaN. In lanes, which the compiler turns into vectors.
fn maximum(values: &[f32]) -> f32 {
    let higher = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = values.as_chunks::<16>();
    let mut lanes = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = higher(*lane, *value);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, higher)
}

#[cfg(test)]
mod tests;
