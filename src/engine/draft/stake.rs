//! How many guesses a step takes.
//!
//! All answers of a step wait for its last row. A guess pays where the step yields more tokens for its cost with it, on average; and
//! is fair where nobody waits more than a little longer for the guesses of others, unless own guesses make up for it: an
//! answer that says the same again and again must not slow down one that does not.

use std::cmp::Reverse;

use super::Guess;

/// What a step costs beside its rows, in rows, where few are computed: weights come from memory in any case. (Default base, two
/// cores: 3.6 ms with one row, 4.3 with two, 6.8 with four, 19.5 with sixteen.)
const BESIDE_ROWS: f32 = 2.0;

/// A step may take so many times as long as without guesses, whoever is in it.
const LONGER: f32 = 1.25;

/// A step before anything is guessed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stake {
    /// Its rows.
    pub(crate) rows: usize,
    /// Its sequences.
    pub(crate) parts: usize,
    /// Those from which a token is drawn.
    pub(crate) drawn: usize,
}

impl Stake {
    /// The chance below which no guess can pay.
    pub(crate) fn least_chance(self) -> f32 {
        self.drawn as f32 / (BESIDE_ROWS + self.rows as f32)
    }

    /// How many of each draft are taken, at most `most` in all: one of each, then one more, the likeliest first where not all of
    /// them can be.
    pub(crate) fn take(self, drafts: &[&[Guess]], most: usize) -> Vec<usize> {
        let start = BESIDE_ROWS + self.rows as f32;
        let (mut cost, mut yields) = (start, self.drawn as f32);
        let (mut taken, mut expected) = (vec![0; drafts.len()], vec![1.0; drafts.len()]);
        for level in 0.. {
            let guess = |at: usize| drafts[at].get(level).filter(|_| taken[at] == level);
            let mut next: Vec<(f32, Reverse<usize>)> =
                (0..drafts.len()).filter_map(|at| Some((guess(at)?.chance, Reverse(at)))).collect();
            next.sort_by(|one, other| other.0.total_cmp(&one.0).then(other.1.cmp(&one.1)));
            next.truncate(most - taken.iter().sum::<usize>());
            let (mut with, mut from_it) = (cost, yields);
            let paying = next.iter().take_while(|(chance, _)| {
                let pays = chance * with > from_it;
                (with, from_it) = (with + 1.0, from_it + chance);
                pays
            });
            next.truncate(paying.count());
            // What the slowest of all gets from so long a step.
            let mut after = expected.clone();
            for (chance, Reverse(at)) in &next {
                after[*at] += chance;
            }
            let others = if drafts.len() < self.parts { 1.0 } else { f32::INFINITY };
            let slowest = after.into_iter().fold(others, f32::min);
            let all = next.len();
            if cost + all as f32 > start * slowest {
                next.retain(|_| {
                    let fits = cost + 1.0 <= start * LONGER;
                    cost += if fits { 1.0 } else { 0.0 };
                    fits
                });
            } else {
                cost += all as f32;
            }
            for (chance, Reverse(at)) in &next {
                taken[*at] += 1;
                expected[*at] += chance;
                yields += chance;
            }
            if next.is_empty() || next.len() < all {
                break;
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn draft(chance: f32, guesses: usize) -> Vec<Guess> {
        let guess = |at: usize| Guess {
            token: 0,
            chance: chance.powi(i32::try_from(at).unwrap() + 1),
            hope: None,
        };
        (0..guesses).map(guess).collect()
    }

    fn take(stake: Stake, drafts: &[Vec<Guess>], most: usize) -> Vec<usize> {
        stake.take(&drafts.iter().map(Vec::as_slice).collect::<Vec<_>>(), most)
    }

    /// So many answers, each with one row.
    fn answers(count: usize) -> Stake {
        Stake { rows: count, parts: count, drawn: count }
    }

    #[test]
    fn alone_an_answer_takes_what_pays() {
        assert_eq!(take(answers(1), &[draft(0.99, 7)], 64), [7]);
        assert_eq!(take(answers(1), &[draft(0.6, 7)], 64), [1]);
        assert_eq!(take(answers(1), &[draft(0.3, 7)], 64), [0]);
        assert_eq!(take(answers(1), &[draft(0.99, 7)], 3), [3]);
        assert!(answers(1).least_chance() < 0.34 && answers(16).least_chance() > 0.88);
    }

    #[test]
    fn who_guesses_nothing_waits_a_quarter_longer_at_most() {
        let sure = draft(0.99, 7);
        // One row of four is a quarter; of three and a half it would be more.
        assert_eq!(take(answers(2), std::slice::from_ref(&sure), 64), [1]);
        assert_eq!(take(answers(1 + 3), &vec![sure.clone(); 3], 64), [1, 0, 0]);
        assert_eq!(take(answers(15), &vec![sure.clone(); 14], 64).iter().sum::<usize>(), 4);
        // Nor does somebody whose prompt is computed.
        let prompt = Stake { rows: 9, parts: 2, drawn: 1 };
        assert_eq!(take(prompt, &[sure], 64), [2]);
    }

    #[test]
    fn where_all_gain_all_take() {
        assert_eq!(take(answers(4), &vec![draft(0.99, 7); 4], 64), [7; 4]);
        assert_eq!(take(answers(4), &vec![draft(0.99, 7); 4], 10), [3, 3, 2, 2]);
        let mixed = [draft(0.99, 7), draft(0.99, 7), draft(0.99, 1)];
        let taken = take(answers(3), &mixed, 64);
        assert!(taken[0] <= 2 && taken[2] == 1, "the third gets two tokens at most: {taken:?}");
    }

    proptest! {
        #[test]
        fn nobody_is_worse_off_by_more_than_a_quarter(
            chances in prop::collection::vec((0.0..1.0_f32, 0..8_usize), 0..20),
            (others, rows) in (0..4_usize, 0..40_usize),
            most in 0..65_usize,
        ) {
            let drafts: Vec<_> = chances.iter().map(|(chance, count)| draft(*chance, *count)).collect();
            let parts = drafts.len() + others;
            let stake = Stake { rows: parts + rows, parts, drawn: parts };
            let taken = take(stake, &drafts, most);
            let sum: usize = taken.iter().sum();
            prop_assert!(sum <= most);
            let before = BESIDE_ROWS + stake.rows as f32;
            let longer = (before + sum as f32) / before;
            let expected: Vec<f32> = drafts.iter().zip(&taken).map(|(draft, taken)| {
                1.0 + draft[..*taken].iter().map(|guess| guess.chance).sum::<f32>()
            }).collect();
            let slowest = expected.iter().copied().chain((others > 0).then_some(1.0)).fold(f32::INFINITY, f32::min);
            prop_assert!(longer <= LONGER.max(slowest) + 1e-3, "{longer} {slowest}");
            let yields = expected.iter().sum::<f32>() + others as f32;
            prop_assert!(yields + 1e-3 >= parts as f32 * longer, "more for its cost than without");
        }
    }
}
