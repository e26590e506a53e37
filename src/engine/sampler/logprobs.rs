//! How likely tokens are after a row of logits.

use super::{
    NotANumber, best,
    choice::{Candidate, last_of_best},
    weights::{ONE, weight},
};
use crate::engine::job::Logprob;

/// How likely `token` and the `top` likeliest tokens are after a row of logits `[vocab]`.
pub(crate) fn score(logits: &[f32], token: u32, top: usize) -> Result<Logprob, NotANumber> {
    let best = best(logits)?;
    let total: u64 = logits.iter().map(|logit| weight(logit - best)).sum();
    let normalizer = f64::from(best) + (total as f64 / ONE as f64).ln();
    #[expect(clippy::cast_possible_truncation, reason = "f32 is what is reported")]
    let logprob = |logit: f32| (f64::from(logit) - normalizer) as f32;
    let taken =
        usize::try_from(token).ok().and_then(|index| logits.get(index)).ok_or(NotANumber)?;
    Ok(Logprob {
        token,
        logprob: logprob(*taken),
        top: likeliest(logits, top).into_iter().map(|(id, logit)| (id, logprob(logit))).collect(),
    })
}

/// The `count` highest logits, best first, ties to the lower id.
fn likeliest(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let count = count.min(logits.len());
    if count == 0 {
        return Vec::new();
    }
    let mut pool = Vec::new();
    last_of_best(logits, count, &mut pool);
    pool.truncate(count);
    pool.sort_unstable_by(Candidate::order);
    pool.into_iter().map(|candidate| (candidate.id, candidate.score)).collect()
}
