//! What an answer will say next, guessed from what was said before.
//!
//! A step reads all weights whether it computes one row or a few, and an answer that is alone in it has one. So guessed
//! tokens are computed beside the last known one, and then drawn one after the other for as long as what is drawn is what
//! was guessed: speculative decoding (Leviathan et al., arXiv 2211.17192), whose draft is not a second network but what
//! followed the same few tokens in the prompt, in the answer so far, and in what the same adapter answered before to the
//! same scope. An adapter with one task has forms of its own, and says them again and again.
//!
//! Nothing is accepted that the answer's own sampler does not draw, and the bits of a row depend on no other row behind it.
//! So an answer is, bit for bit, what it would be without; only its speed changes. How fast an answer comes can tell what
//! others of the scope were told, as with their prefixes: who may not learn that has another scope, or another salt.

mod phrases;
mod stake;

use std::collections::BTreeMap;

use lru::LruCache;

use self::phrases::{LENGTHS, LONGEST, context};
pub(crate) use self::{phrases::Phrases, stake::Stake};
use super::job::{Salt, Scope};
use crate::lora::Digest;

/// How often what was seen once comes again, before anything is known of that.
const HOPES: Hopes = [0.6, 0.4];
/// How much one outcome changes them.
const PACE: f32 = 1.0 / 8.0;

/// Contexts that are kept of what a circle was told: at most twice so many, which is as many as a table of 1,024 takes before it
/// grows...
const KEPT: usize = 896;
/// ...of so many circles: 13 MB in all.
const CIRCLES: usize = 256;

/// How often what was seen once comes again, for each of [`LENGTHS`].
type Hopes = [f32; LENGTHS.len()];

/// Those who may learn what another of them was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Circle {
    /// See [`Scope`].
    pub(crate) scope: Scope,
    /// See [`Salt`].
    pub(crate) salt: Salt,
    /// What they are answered through.
    pub(crate) adapter: Option<Digest>,
}

/// What one circle was told.
#[derive(Debug)]
struct Told {
    phrases: Phrases,
    hopes: Hopes,
}

impl Default for Told {
    fn default() -> Self {
        Self { phrases: Phrases::new(KEPT), hopes: HOPES }
    }
}

/// A guessed token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Guess {
    /// The token.
    pub(crate) token: u32,
    /// How likely it and all before it come true.
    pub(crate) chance: f32,
    /// Which of [`LENGTHS`] it follows from, where nothing but a hope speaks for it.
    hope: Option<usize>,
}

/// What was told of late, and how well that has foretold what was told then.
#[derive(Debug)]
pub(crate) struct Recall {
    /// Those of each scope by when they were last told something; none is empty. None at all where nothing is kept for others.
    circles: Option<BTreeMap<Scope, LruCache<Circle, Told>>>,
    /// How many circles there are.
    count: usize,
    /// For those that are in no circle.
    hopes: Hopes,
}

impl Recall {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        Self { circles: Some(BTreeMap::new()), count: 0, hopes: HOPES }
    }

    /// Nothing, ever: answers are guessed from themselves alone.
    pub(crate) fn none() -> Self {
        Self { circles: None, ..Self::new() }
    }

    /// Nothing any more.
    pub(crate) fn forget(&mut self) {
        *self = if self.circles.is_some() { Self::new() } else { Self::none() };
    }

    /// The last of `said` was said in an answer.
    pub(crate) fn note(&mut self, circle: Circle, said: &[u32]) {
        if let Some(told) = self.told_mut(circle) {
            told.phrases.note(said);
        }
    }

    /// At most `most` tokens that will follow `said`, each with a chance above `least`. `own` is what was said in the answer
    /// itself and its prompt.
    pub(crate) fn guess(
        &self,
        circle: Circle,
        (own, said): (&Phrases, &[u32]),
        most: usize,
        least: f32,
    ) -> Vec<Guess> {
        let told = self.told(circle);
        let hopes = told.map_or(self.hopes, |told| told.hopes);
        let mut said = said[said.len().saturating_sub(LONGEST)..].to_vec();
        let (mut guesses, mut chance) = (Vec::new(), 1.0);
        while guesses.len() < most {
            let likeliest = (0..).zip(LENGTHS).find_map(|(at, length)| {
                let context = context(&said, length)?;
                let others = told.and_then(|told| told.phrases.after(&context));
                let found = own.after(&context).into_iter().chain(others);
                let chances = found.map(|follower| (follower.chance(hopes[at]), follower, at));
                chances.max_by(|one, other| one.0.total_cmp(&other.0))
            });
            let Some((own_chance, follower, at)) = likeliest else { break };
            chance *= own_chance;
            if chance <= least {
                break;
            }
            let hope = follower.is_new().then_some(at);
            guesses.push(Guess { token: follower.token, chance, hope });
            said.push(follower.token);
        }
        guesses
    }

    /// The first `right` of these guesses came true; the one behind them, if there is one, did not.
    pub(crate) fn learn(&mut self, circle: Circle, guesses: &[Guess], right: usize) {
        let hopes = match &self.circles {
            Some(_) => self.told_mut(circle).map(|told| &mut told.hopes),
            None => Some(&mut self.hopes),
        };
        let Some(hopes) = hopes else { return };
        for (at, guess) in guesses.iter().enumerate().take(right + 1) {
            if let Some(hope) = guess.hope {
                let outcome = if at < right { 1.0 } else { 0.0 };
                hopes[hope] += (outcome - hopes[hope]) * PACE;
            }
        }
    }

    fn told(&self, circle: Circle) -> Option<&Told> {
        self.circles.as_ref()?.get(&circle.scope)?.peek(&circle)
    }

    /// What a circle was told, nothing where it is new. Where there are too many, one of the scope that has most of them is
    /// forgotten: nobody makes others forget by asking in ever new circles.
    fn told_mut(&mut self, circle: Circle) -> Option<&mut Told> {
        let circles = self.circles.as_mut()?;
        let known = circles.get(&circle.scope).is_some_and(|own| own.contains(&circle));
        if !known {
            if self.count == CIRCLES {
                let (scope, most) = circles.iter_mut().max_by_key(|(_, own)| own.len())?;
                let scope = *scope;
                most.pop_lru();
                if most.is_empty() {
                    circles.remove(&scope);
                }
                self.count -= 1;
            }
            self.count += 1;
        }
        let own = circles.entry(circle.scope).or_insert_with(LruCache::unbounded);
        Some(own.get_or_insert_mut(circle, Told::default))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn circle(scope: u32, adapter: Option<u8>) -> Circle {
        let adapter = adapter.map(|id| Digest::of(&[id], &[]));
        Circle { scope: Scope(scope), salt: Salt::default(), adapter }
    }

    /// One answer is said from its token `from` on.
    fn tell(recall: &mut Recall, circle: Circle, said: &[u32], from: usize) {
        (from..said.len()).for_each(|end| recall.note(circle, &said[..=end]));
    }

    fn guess(recall: &Recall, circle: Circle, said: &[u32], most: usize) -> Vec<u32> {
        let guesses = recall.guess(circle, (&Phrases::of(said), said), most, 0.3);
        guesses.iter().map(|guess| guess.token).collect()
    }

    #[test]
    fn an_answer_goes_on_as_the_prompt_did() {
        let said = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4];
        let often = said[..9].repeat(3);
        let often = [&often, &said[..4]].concat();
        assert_eq!(guess(&Recall::none(), circle(0, None), &often, 3), [5, 6, 7]);
        assert_eq!(guess(&Recall::none(), circle(0, None), &said, 3), [5, 6], "less sure");
        assert_eq!(
            guess(&Recall::none(), circle(0, None), &said[..9], 3),
            [0; 0],
            "nothing came twice"
        );
        assert_eq!(guess(&Recall::none(), circle(0, None), &said[..1], 3), [0; 0]);
    }

    #[test]
    fn an_answer_goes_on_as_others_of_its_circle_did_and_of_no_other() {
        let mut recall = Recall::new();
        for _ in 0..9 {
            tell(&mut recall, circle(3, Some(1)), &[1, 2, 3, 4, 10, 11, 12, 13], 4);
        }
        let said = [7, 8, 1, 2, 3, 4];
        assert_eq!(guess(&recall, circle(3, Some(1)), &said, 7), [10, 11, 12, 13]);
        for other in [circle(2, Some(1)), circle(3, Some(2)), circle(3, None)] {
            assert_eq!(guess(&recall, other, &said, 7), [0; 0]);
        }
        let salted = Circle { salt: Salt([1; 32]), ..circle(3, Some(1)) };
        assert_eq!(guess(&recall, salted, &said, 7), [0; 0]);
    }

    #[test]
    fn what_follows_more_often_is_guessed_and_what_no_longer_does_is_not() {
        let mut recall = Recall::new();
        let (circle, said) = (circle(0, None), |last| [1, 2, 3, 4, last]);
        let mut first = Vec::new();
        for last in [5, 5, 6, 5, 6, 6, 6, 6, 6] {
            tell(&mut recall, circle, &said(last), 4);
            first.extend(guess(&recall, circle, &said(0)[..4], 1));
        }
        assert_eq!(first, [5, 5, 5, 5, 5, 5, 6, 6, 6]);
    }

    #[test]
    fn hopes_that_are_disappointed_make_no_more_guesses() {
        let mut recall = Recall::new();
        let (own, said) = (Phrases::of(&[1, 2, 3, 4, 5, 1, 2]), [1, 2, 3, 4, 5, 1, 2]);
        let own = (&own, &said[..]);
        let mut steps = 0;
        loop {
            let guesses = recall.guess(circle(0, None), own, 1, 0.3);
            if guesses.is_empty() {
                break;
            }
            steps += 1;
            recall.learn(circle(0, None), &guesses, 0);
        }
        assert!((1..8).contains(&steps), "{steps}");
        assert_eq!(recall.guess(circle(1, None), own, 1, 0.3).len(), 1);
    }

    #[test]
    fn memory_is_bounded_and_nobody_makes_others_forget() {
        let mut recall = Recall::new();
        tell(&mut recall, circle(7, None), &[1, 2, 3, 4, 5], 4);
        for salt in 0..2 * CIRCLES {
            let mut name = [0; 32];
            name[..8].copy_from_slice(&salt.to_le_bytes());
            recall.note(Circle { salt: Salt(name), ..circle(1, None) }, &[1, 2, 3]);
        }
        assert_eq!(guess(&recall, circle(7, None), &[1, 2, 3, 4], 1), [5]);
        for scope in 0..2 * u32::try_from(CIRCLES).unwrap() {
            recall.note(circle(scope, None), &[1, 2, 3]);
            let circles = recall.circles.as_ref().unwrap();
            assert_eq!(circles.values().map(LruCache::len).sum::<usize>(), recall.count);
            assert!(recall.count <= CIRCLES && circles.values().all(|own| !own.is_empty()));
        }
        recall.forget();
        assert_eq!(guess(&recall, circle(7, None), &[1, 2, 3, 4], 1), [0; 0]);
    }

    proptest! {
        /// Whatever was said and learnt: chances are chances, and no more is guessed than is asked for.
        #[test]
        fn chances_stay_between_nothing_and_certainty(
            said in prop::collection::vec(0..4_u32, 1..200),
            (most, right) in (0..9_usize, 0..9_usize),
        ) {
            let mut recall = Recall::new();
            let circle = circle(0, None);
            for end in 0..said.len() {
                recall.note(circle, &said[..=end]);
                let own = (&Phrases::of(&said[..=end]), &said[..=end]);
                let guesses = recall.guess(circle, own, most, 0.2);
                prop_assert!(guesses.len() <= most);
                prop_assert!(guesses.iter().all(|guess| 0.2 < guess.chance && guess.chance <= 1.0));
                prop_assert!(guesses.is_sorted_by(|one, next| one.chance >= next.chance));
                recall.learn(circle, &guesses, right.min(guesses.len()));
            }
            let told = recall.told(circle).unwrap();
            prop_assert!(told.hopes.iter().all(|hope| (0.0..=1.0).contains(hope)));
        }
    }
}
