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

use std::{collections::HashMap, mem, num::NonZeroUsize};

use lru::LruCache;

use super::job::{Salt, Scope};
use crate::lora::Digest;

/// Lengths of the contexts that are looked up: what follows a long one is surer, a short one is found more often.
const LENGTHS: [usize; 2] = [4, 2];
/// The longest of them.
const LONGEST: usize = LENGTHS[0];
/// How often what was seen once comes again, before anything is known of that.
const HOPES: [f32; LENGTHS.len()] = [0.6, 0.3];
/// How much one outcome changes them.
const PACE: f32 = 1.0 / 8.0;

/// Contexts that are kept of what a circle was told: at most twice so many...
const KEPT: usize = 1024;
/// ...of so many circles, those last asked: 16 MB in all.
const CIRCLES: usize = 256;
/// Tokens at the end of a prompt that are looked through; it takes a quarter of a millisecond.
const LOOKED_THROUGH: usize = 2048;

/// What a step costs beside its rows, in rows, where few are computed: weights come from memory in any case. (Default base, two
/// cores: 3.6 ms with one row, 6.8 with four, 19.5 with sixteen.)
const BESIDE_ROWS: f32 = 2.5;

/// The last tokens before another one, the rest `u32::MAX`.
type Context = [u32; LONGEST];

/// The last `length` tokens of `said`, where there are so many.
fn context(said: &[u32], length: usize) -> Option<Context> {
    let last = &said[said.len().checked_sub(length)?..];
    let mut context = [u32::MAX; LONGEST];
    context[..length].copy_from_slice(last);
    Some(context)
}

/// What followed a context.
#[derive(Clone, Copy, Debug)]
struct Follower {
    token: u32,
    /// How often it did, of late.
    seen: u8,
    /// And how often something else did.
    others: u8,
}

impl Follower {
    const MOST: u8 = 64;

    fn new(token: u32) -> Self {
        Self { token, seen: 1, others: 0 }
    }

    /// `token` followed.
    fn note(&mut self, token: u32) {
        if self.token == token {
            self.seen += 1;
        } else {
            self.others += 1;
        }
        if self.others > self.seen {
            *self = Self::new(token);
        }
        if self.seen == Self::MOST {
            (self.seen, self.others) = (self.seen / 2, self.others / 2);
        }
    }

    /// How likely it follows again, where `hope` says that of one that was seen once. The hope counts like two sights more.
    fn chance(self, hope: f32) -> f32 {
        let (again, others) = (f32::from(self.seen - 1), f32::from(self.others));
        (again + 2.0 * hope) / (again + others + 2.0)
    }

    /// Its chance is a hope rather than experience.
    fn is_new(self) -> bool {
        self.seen + self.others <= 2
    }
}

/// What followed which contexts: of a bounded number of them those that came last.
#[derive(Debug)]
pub(crate) struct Phrases {
    /// Most of the young ones.
    most: usize,
    young: HashMap<Context, Follower>,
    /// The young ones of before.
    old: HashMap<Context, Follower>,
}

impl Phrases {
    /// None yet.
    fn new(most: usize) -> Self {
        Self { most, young: HashMap::new(), old: HashMap::new() }
    }

    /// Of an answer that has said so much, its prompt included.
    pub(crate) fn of(said: &[u32]) -> Self {
        let mut phrases = Self::new(LOOKED_THROUGH * LENGTHS.len());
        for end in said.len().saturating_sub(LOOKED_THROUGH)..said.len() {
            phrases.note(&said[..=end]);
        }
        phrases
    }

    /// The last of `said` was said after those before it.
    pub(crate) fn note(&mut self, said: &[u32]) {
        let Some((token, said)) = said.split_last() else { return };
        for context in LENGTHS.iter().filter_map(|length| context(said, *length)) {
            if let Some(follower) = self.young.get_mut(&context) {
                follower.note(*token);
                continue;
            }
            let mut follower = self.old.remove(&context);
            match &mut follower {
                Some(follower) => follower.note(*token),
                None => follower = Some(Follower::new(*token)),
            }
            if self.young.len() == self.most {
                self.old = mem::take(&mut self.young);
            }
            self.young.extend(follower.map(|follower| (context, follower)));
        }
    }

    fn after(&self, context: &Context) -> Option<Follower> {
        self.young.get(context).or_else(|| self.old.get(context)).copied()
    }
}

/// Those of whom one may learn what another was told.
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
    /// See [`HOPES`].
    hopes: [f32; LENGTHS.len()],
}

impl Default for Told {
    fn default() -> Self {
        Self { phrases: Phrases::new(KEPT), hopes: HOPES }
    }
}

/// A guessed token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Guess {
    /// The token.
    pub(crate) token: u32,
    /// Which of [`LENGTHS`] it follows from, where nothing but a hope speaks for it.
    hope: Option<usize>,
}

/// What was told of late, and how well that has foretold what was told then.
#[derive(Debug)]
pub(crate) struct Recall {
    /// None where nothing is kept for others.
    circles: Option<LruCache<Circle, Told>>,
}

impl Recall {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        let most = NonZeroUsize::new(CIRCLES).expect("not zero");
        Self { circles: Some(LruCache::new(most)) }
    }

    /// Nothing, ever: answers are guessed from themselves alone.
    pub(crate) fn none() -> Self {
        Self { circles: None }
    }

    /// The last of `said` was said in an answer.
    pub(crate) fn note(&mut self, circle: Circle, said: &[u32]) {
        if let Some(circles) = &mut self.circles {
            circles.get_or_insert_mut(circle, Told::default).phrases.note(said);
        }
    }

    /// At most `most` tokens that will follow `said`, each for as long as it pays that all up to it come true. `own` is what
    /// was said in the answer itself and its prompt.
    pub(crate) fn guess(
        &self,
        circle: Circle,
        (own, said): (&Phrases, &[u32]),
        most: usize,
        bet: &mut Bet,
    ) -> Vec<Guess> {
        let told = self.circles.as_ref().and_then(|circles| circles.peek(&circle));
        let hopes = told.map_or(HOPES, |told| told.hopes);
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
            if !bet.pays(chance) {
                break;
            }
            let hope = follower.is_new().then_some(at);
            guesses.push(Guess { token: follower.token, hope });
            said.push(follower.token);
        }
        guesses
    }

    /// The first `right` of these guesses came true; the one behind them, if there is one, did not.
    pub(crate) fn learn(&mut self, circle: Circle, guesses: &[Guess], right: usize) {
        let Some(circles) = &mut self.circles else { return };
        let told = circles.get_or_insert_mut(circle, Told::default);
        for (at, guess) in guesses.iter().enumerate().take(right + 1) {
            if let Some(hope) = guess.hope {
                let outcome = if at < right { 1.0 } else { 0.0 };
                told.hopes[hope] += (outcome - told.hopes[hope]) * PACE;
            }
        }
    }
}

/// A step so far, and what it will yield on average.
///
/// One more row is worth its while where the tokens of a step for its cost become more by it: where its chance is above
/// what a row's cost yields without it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bet {
    rows: f32,
    tokens: f32,
}

impl Bet {
    /// A step of so many rows from which so many tokens are drawn.
    pub(crate) fn new(rows: usize, tokens: usize) -> Self {
        Self { rows: rows as f32, tokens: tokens as f32 }
    }

    /// Whether a row with this chance is worth its while; it is in the step then.
    fn pays(&mut self, chance: f32) -> bool {
        let pays = chance * (BESIDE_ROWS + self.rows) > self.tokens;
        if pays {
            self.rows += 1.0;
            self.tokens += chance;
        }
        pays
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
        let guesses = recall.guess(circle, (&Phrases::of(said), said), most, &mut Bet::new(1, 1));
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
            let guesses = recall.guess(circle(0, None), own, 1, &mut Bet::new(1, 1));
            if guesses.is_empty() {
                break;
            }
            steps += 1;
            recall.learn(circle(0, None), &guesses, 0);
        }
        assert!((1..8).contains(&steps), "{steps}");
        assert_eq!(recall.guess(circle(1, None), own, 1, &mut Bet::new(1, 1)).len(), 1);
    }

    #[test]
    fn the_more_rows_a_step_has_the_surer_a_guess_must_be() {
        let pays = |rows, chance| Bet::new(rows, rows).pays(chance);
        assert!(pays(1, 0.3) && !pays(1, 0.2));
        assert!(pays(16, 0.9) && !pays(16, 0.8));
        let mut bet = Bet::new(1, 1);
        assert_eq!((0..10).filter(|_| bet.pays(1.0)).count(), 10);
        assert!(!bet.pays(0.8) && bet.pays(0.9));
    }

    #[test]
    fn memory_is_bounded() {
        let mut recall = Recall::new();
        for scope in 0..2 * u32::try_from(CIRCLES).unwrap() {
            recall.note(circle(scope, None), &[1, 2, 3]);
        }
        assert_eq!(recall.circles.as_ref().unwrap().len(), CIRCLES);
        let said: Vec<u32> = (0..20_000).collect();
        tell(&mut recall, circle(0, None), &said, 0);
        let told = recall.circles.as_mut().unwrap().get(&circle(0, None)).unwrap();
        assert!(told.phrases.young.len() <= KEPT && told.phrases.old.len() <= KEPT);
        let own = Phrases::of(&said);
        assert!(own.young.len() + own.old.len() <= LOOKED_THROUGH * LENGTHS.len());
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
                let mut bet = Bet::new(1, 1);
                let own = (&Phrases::of(&said[..=end]), &said[..=end]);
                let guesses = recall.guess(circle, own, most, &mut bet);
                prop_assert!(guesses.len() <= most);
                prop_assert!(bet.tokens >= 1.0 && bet.tokens <= 1.0 + guesses.len() as f32);
                recall.learn(circle, &guesses, right.min(guesses.len()));
            }
            let told = recall.circles.as_mut().unwrap().get(&circle).unwrap();
            prop_assert!(told.hopes.iter().all(|hope| (0.0..=1.0).contains(hope)));
        }
    }
}
