//! What a token is chosen from, and the choice. Nothing here sorts the vocabulary.

use std::cmp::Ordering;

use super::{
    maximum,
    weights::{ONE, weight},
};
use crate::engine::job::Sampling;

/// Scores in a block whose maximum is taken first, where only the best of all are looked for.
const BLOCK: usize = 64;

/// A token that may be drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) id: u32,
    /// The logit after penalties.
    pub(super) score: f32,
    /// See [`weight`].
    weight: u64,
}

impl Candidate {
    fn new(id: u32, score: f32) -> Self {
        // The two zeros are equal; after this they also compare so.
        Self { id, score: score + 0.0, weight: 0 }
    }

    /// Best first; among equals the lower id.
    pub(super) fn order(&self, other: &Self) -> Ordering {
        other.score.total_cmp(&self.score).then(self.id.cmp(&other.id))
    }
}

/// The row that a token is chosen from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice<'a> {
    pub(super) sampling: &'a Sampling,
    pub(super) scores: &'a [f32],
    /// The highest of `scores`.
    pub(super) best: f32,
}

impl Choice<'_> {
    /// Fills `candidates` with those that `top_k`, `top_p` and `min_p` leave, weighed, in the order of ids.
    pub(super) fn gather(self, candidates: &mut Vec<Candidate>, pool: &mut Vec<Candidate>) {
        let Sampling { temperature, top_k, top_p, min_p, .. } = *self.sampling;
        candidates.clear();
        let all = (0..).zip(self.scores).map(|(id, score)| Candidate::new(id, *score));
        if (1..self.scores.len()).contains(&top_k) {
            let last = last_of_best(self.scores, top_k, pool);
            candidates.extend(all.filter(|candidate| candidate.order(&last).is_le()));
        } else {
            candidates.extend(all);
        }
        for candidate in candidates.iter_mut() {
            candidate.weight = weight((candidate.score - self.best) / temperature);
        }
        if top_p < 1.0 {
            let last = last_of_nucleus(candidates, top_p, pool);
            candidates.retain(|candidate| candidate.order(&last).is_le());
        }
        let least = portion(min_p, ONE);
        candidates.retain(|candidate| candidate.weight >= least);
    }
}

/// The candidate at `unit`, from 0 to 1, of all weight.
pub(super) fn pick(candidates: &[Candidate], unit: f64) -> Option<u32> {
    let total = total(candidates);
    let mut rest = scale(unit, total).min(total.checked_sub(1)?);
    candidates
        .iter()
        .find(|candidate| match rest.checked_sub(candidate.weight) {
            Some(less) => {
                rest = less;
                false
            }
            None => true,
        })
        .map(|candidate| candidate.id)
}

fn total(candidates: &[Candidate]) -> u64 {
    candidates.iter().map(|candidate| candidate.weight).sum()
}

/// `share` of `whole`, at least 1 and at most all of it.
pub(super) fn portion(share: f32, whole: u64) -> u64 {
    scale(f64::from(share), whole).clamp(1, whole)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "shares are not negative, and the cast saturates"
)]
pub(super) fn scale(share: f64, whole: u64) -> u64 {
    (share * whole as f64) as u64
}

/// The last of the `count` best, found in `pool`. `count` is between 1 and the number of scores.
///
/// Where there are so many blocks, each of the `count` best block maxima is a token not below the last of them: only
/// tokens from there on have to be compared with each other.
pub(super) fn last_of_best(scores: &[f32], count: usize, pool: &mut Vec<Candidate>) -> Candidate {
    let mut maxima: Vec<_> = scores.chunks(BLOCK).map(maximum).collect();
    let bound = if count <= maxima.len() {
        *maxima.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1
    } else {
        f32::NEG_INFINITY
    };
    pool.clear();
    let all = (0..).zip(scores).filter(|(_, score)| **score >= bound);
    pool.extend(all.map(|(id, score)| Candidate::new(id, *score)));
    *pool.select_nth_unstable_by(count - 1, Candidate::order).1
}

/// The last of the fewest best that together reach `share` of all weight, found in `pool`.
fn last_of_nucleus(candidates: &[Candidate], share: f32, pool: &mut Vec<Candidate>) -> Candidate {
    let whole = total(candidates);
    let enough = portion(share, whole);
    // All that are left out here weigh less than what may be left out.
    let least = (whole - enough) / candidates.len() as u64;
    pool.clear();
    pool.extend(candidates.iter().filter(|candidate| candidate.weight >= least));
    let (mut pool, mut missing) = (pool.as_mut_slice(), enough);
    while pool.len() > 1 {
        let middle = pool.len() / 2;
        pool.select_nth_unstable_by(middle, Candidate::order);
        let (better, worse) = pool.split_at_mut(middle);
        let reached = total(better);
        if missing <= reached {
            pool = better;
        } else {
            missing -= reached;
            pool = worse;
        }
    }
    pool[0]
}
