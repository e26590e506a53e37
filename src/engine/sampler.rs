//! Logits -> token. Every decision is a function of one row, its request and its generator.
//!
//! Weights are whole numbers ([`weight`]), so that sums do not depend on the order of adding; and order among tokens is
//! total. So any way to find the tokens to choose from gives the same ones, and none of them has to sort the vocabulary.

use std::{cmp::Ordering, collections::HashMap};

use super::{
    guide::TokenSet,
    job::{Logprob, Sampling},
    rng::Rng,
};

/// The weight of the likeliest token. Sums over a vocabulary of up to 2^24 tokens fit into 64 bits.
const ONE: u64 = 1 << 40;

/// Scores in a block whose maximum is taken first, where only the best of all are looked for.
const BLOCK: usize = 64;

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

/// A token that may be drawn.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    /// The logit after penalties.
    score: f32,
    /// See [`weight`].
    weight: u64,
}

impl Candidate {
    fn new(id: u32, score: f32) -> Self {
        // The two zeros are equal; after this they also compare so.
        Self { id, score: score + 0.0, weight: 0 }
    }

    /// Best first; among equals the lower id.
    fn order(&self, other: &Self) -> Ordering {
        other.score.total_cmp(&self.score).then(self.id.cmp(&other.id))
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

/// The row that a token is chosen from.
#[derive(Clone, Copy, Debug)]
struct Choice<'a> {
    sampling: &'a Sampling,
    scores: &'a [f32],
    /// The highest of `scores`.
    best: f32,
}

impl Choice<'_> {
    /// Fills `candidates` with those that `top_k`, `top_p` and `min_p` leave, weighed, in the order of ids.
    fn gather(self, candidates: &mut Vec<Candidate>, pool: &mut Vec<Candidate>) {
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
fn pick(candidates: &[Candidate], unit: f64) -> Option<u32> {
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
fn portion(share: f32, whole: u64) -> u64 {
    scale(f64::from(share), whole).clamp(1, whole)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "shares are not negative, and the cast saturates"
)]
fn scale(share: f64, whole: u64) -> u64 {
    (share * whole as f64) as u64
}

/// The last of the `count` best, found in `pool`. `count` is between 1 and the number of scores.
///
/// Where there are so many blocks, each of the `count` best block maxima is a token not below the last of them: only
/// tokens from there on have to be compared with each other.
fn last_of_best(scores: &[f32], count: usize, pool: &mut Vec<Candidate>) -> Candidate {
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

/// `exp(distance)` in units of 1 / [`ONE`], rounded down, for a distance of at most 0.
///
/// What is less likely than a 10^12th of the likeliest weighs nothing: a whole vocabulary of that is below the precision
/// of an f32.
fn weight(distance: f32) -> u64 {
    /// `exp` of less is below 1 / [`ONE`].
    const LEAST: f32 = -27.8;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "from 0 to ONE; NaN, which is less than nothing, gives 0"
    )]
    if distance < LEAST { 0 } else { (exp(distance) * ONE as f32) as u64 }
}

/// `exp(x)` for x from -87 to 0 with a relative error below 2e-7, the same on every machine (libm's is not).
///
/// Cephes' `expf` (Moshier 1989): x = n ln 2 + r with whole n, and a polynomial for exp(r), |r| <= ln 2 / 2.
fn exp(x: f32) -> f32 {
    /// Added and subtracted, it leaves the nearest whole number: 1.5 * 2^23.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first with few enough bits for an exact product.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    /// Of r^7, r^6, ... r^2.
    const TERMS: [f32; 6] =
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5];
    let n = x * std::f32::consts::LOG2_E + ROUND - ROUND;
    let r = x - n * LN_2[0] - n * LN_2[1];
    let tail = TERMS.iter().fold(0.0, |sum, term| sum * r + term);
    #[expect(clippy::cast_possible_truncation, reason = "from -126 to 0")]
    let exponent = n as i32;
    (tail * r * r + r + 1.0) * f32::from_bits(((exponent + 127) << 23).cast_unsigned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Just, Strategy, any, prop, prop_assert_eq, prop_oneof, proptest};

    use super::*;

    fn drawn(sampling: Sampling, logits: &[f32]) -> Result<u32, NotANumber> {
        Sampler::new(sampling, &[]).draw(logits, &Limits::default())
    }

    fn greedy() -> Sampling {
        Sampling { temperature: 0.0, ..Sampling::default() }
    }

    /// Everything is sorted, then truncated as the words say.
    fn plain(sampling: &Sampling, logits: &[f32]) -> u32 {
        let mut order: Vec<_> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].partial_cmp(&logits[*a]).unwrap().then(a.cmp(b)));
        let best = logits[order[0]];
        let weight = |id: &usize| weight((logits[*id] - best) / sampling.temperature);
        let sum = |ids: &[usize]| ids.iter().map(weight).sum::<u64>();
        if sampling.top_k > 0 {
            order.truncate(sampling.top_k);
        }
        if sampling.top_p < 1.0 {
            let enough = portion(sampling.top_p, sum(&order));
            let count = (1..=order.len()).find(|count| sum(&order[..*count]) >= enough);
            order.truncate(count.unwrap());
        }
        order.retain(|id| weight(id) >= portion(sampling.min_p, ONE));
        order.sort_unstable();
        let at = scale(Rng::new(sampling.seed).unit(), sum(&order));
        let drawn = (1..=order.len()).find(|count| sum(&order[..*count]) > at).unwrap();
        u32::try_from(order[drawn - 1]).unwrap()
    }

    /// Few values, so that there are ties; or many.
    fn rows() -> impl Strategy<Value = Vec<f32>> {
        let value = prop_oneof![(-4..4_i8).prop_map(f32::from), -30.0..30.0_f32];
        prop::collection::vec(value, 1..400)
    }

    fn samplings() -> impl Strategy<Value = Sampling> {
        let temperature = prop_oneof![Just(1.0), 0.01..3.0_f32, Just(f32::MIN_POSITIVE)];
        let top_p = prop_oneof![Just(1.0), 0.001..1.0_f32, Just(1.0 - f32::EPSILON)];
        let min_p = prop_oneof![Just(0.0), 0.0..=1.0_f32];
        (temperature, 0..450_usize, top_p, min_p, any::<u64>()).prop_map(
            |(temperature, top_k, top_p, min_p, seed)| Sampling {
                temperature,
                top_k,
                top_p,
                min_p,
                seed,
                ..Sampling::default()
            },
        )
    }

    proptest! {
        #[test]
        fn partial_selection_draws_what_full_sorting_draws(logits in rows(), sampling in samplings()) {
            let expected = plain(&sampling, &logits);
            prop_assert_eq!(drawn(sampling, &logits), Ok(expected));
        }

        #[test]
        fn the_likeliest_are_those_of_a_full_sort(logits in rows(), top in 0..30_usize) {
            let mut order: Vec<_> = (0_u32..).zip(logits.iter().copied()).collect();
            order.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
            order.truncate(top);
            let scored = score(&logits, 0, top).unwrap();
            let ids: Vec<_> = scored.top.iter().map(|(id, _)| *id).collect();
            prop_assert_eq!(ids, order.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        }
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        assert_eq!(drawn(greedy(), &[1.0, 3.0, 3.0, -1.0]), Ok(1));
        assert_eq!(drawn(greedy(), &[-0.0, 0.0]), Ok(0));
        let one = Sampling { top_k: 1, seed: 9, ..Sampling::default() };
        assert_eq!(drawn(one, &[1.0, 3.0, 3.0, -1.0]), Ok(1));
    }

    #[test]
    fn draws_follow_the_distribution() {
        let logits = [0.0, 1.0, 2.0, f32::NEG_INFINITY];
        let mut sampler = Sampler::new(Sampling { seed: 1, ..Sampling::default() }, &[]);
        let mut counts = [0_i32; 4];
        for _ in 0..20_000 {
            counts[sampler.draw(&logits, &Limits::default()).unwrap() as usize] += 1;
        }
        // e^0, e^1, e^2 over their sum, five standard deviations at most 350.
        for (count, expected) in counts.iter().zip([1_801, 4_895, 13_305, 0]) {
            assert!((count - expected).abs() < 350, "{counts:?}");
        }
        assert_eq!(counts[3], 0);
    }

    #[test]
    fn equal_seeds_draw_equal_tokens() {
        let sampling = Sampling { seed: 42, temperature: 2.0, ..Sampling::default() };
        let logits: Vec<f32> = (0..100_u8).map(|id| f32::from(id % 7)).collect();
        let [mut one, mut two] = [0; 2].map(|_| Sampler::new(sampling.clone(), &[]));
        let tokens: Vec<_> =
            (0..50).map(|_| one.draw(&logits, &Limits::default()).unwrap()).collect();
        assert!(
            (0..50)
                .map(|_| two.draw(&logits, &Limits::default()).unwrap())
                .eq(tokens.iter().copied())
        );
        let mut other = Sampler::new(Sampling { seed: 43, ..sampling }, &[]);
        assert!(!(0..50).map(|_| other.draw(&logits, &Limits::default()).unwrap()).eq(tokens));
    }

    #[test]
    fn overflow_is_told_and_never_drawn() {
        for bad in [f32::NAN, f32::INFINITY] {
            assert_eq!(drawn(greedy(), &[0.0, bad, 1.0]), Err(NotANumber));
            assert_eq!(drawn(Sampling::default(), &[0.0, bad, 1.0]), Err(NotANumber));
            assert_eq!(score(&[0.0, bad], 0, 1), Err(NotANumber));
        }
        assert_eq!(drawn(greedy(), &[f32::NEG_INFINITY; 3]), Err(NotANumber));
        assert_eq!(drawn(greedy(), &[]), Err(NotANumber));
        let masked = [f32::NEG_INFINITY, 0.5, f32::NEG_INFINITY];
        assert_eq!(drawn(Sampling::default(), &masked), Ok(1));
        assert_eq!(drawn(Sampling::default(), &[f32::MIN, f32::MAX]), Ok(1));
    }

    #[test]
    fn repetition_counts_prompt_and_answer_the_others_only_the_answer() {
        let with = |change: fn(&mut Sampling)| {
            let mut sampling = greedy();
            change(&mut sampling);
            let mut sampler = Sampler::new(sampling, &[0]);
            [0; 3].map(|_| sampler.draw(&[2.0, 1.5, -0.5], &Limits::default()).unwrap())
        };
        assert_eq!(with(|_| {}), [0, 0, 0]);
        assert_eq!(with(|sampling| sampling.repetition_penalty = 2.0), [1, 0, 0]);
        assert_eq!(with(|sampling| sampling.presence_penalty = 1.0), [0, 1, 0]);
        assert_eq!(with(|sampling| sampling.frequency_penalty = 2.0), [0, 1, 0]);
        // 2 - 4, 1.5 - 4, then -0.5 is best.
        assert_eq!(with(|sampling| sampling.frequency_penalty = 4.0), [0, 1, 2]);
    }

    #[test]
    fn a_negative_logit_is_multiplied_by_the_repetition_penalty() {
        let sampling = Sampling { repetition_penalty: 2.0, ..greedy() };
        assert_eq!(Sampler::new(sampling, &[0]).draw(&[-1.0, -1.5], &Limits::default()), Ok(1));
    }

    #[test]
    fn logprobs_are_a_log_softmax() {
        let scored = score(&[0.0, 0.0, f32::NEG_INFINITY], 1, 5).unwrap();
        let half = 0.5_f32.ln();
        assert_eq!((scored.token, scored.logprob), (1, half));
        assert_eq!(scored.top, [(0, half), (1, half), (2, f32::NEG_INFINITY)]);
        assert!(score(&[1000.0, -1000.0], 0, 0).unwrap().logprob.abs() < f32::EPSILON);
        assert_eq!(score(&[0.0], 7, 0), Err(NotANumber), "outside the vocabulary");
    }

    #[test]
    fn the_exponential_is_near_the_true_one() {
        for step in 0..=100_000_u32 {
            let x = step as f32 * -8.7e-4;
            let truth = f64::from(x).exp();
            let error = (f64::from(exp(x)) - truth).abs() / truth;
            assert!(error < 2e-7, "exp({x}) is off by {error}");
        }
        assert_eq!([0.0, -27.9, f32::NEG_INFINITY, f32::NAN].map(weight), [ONE, 0, 0, 0]);
        assert!(weight(-27.0) > 0);
    }
}
