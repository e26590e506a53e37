//! What was said after the same few tokens.

use std::{collections::HashMap, mem};

/// Lengths of the contexts that are looked up: what follows a long one is surer, a short one is found more often.
pub(super) const LENGTHS: [usize; 2] = [4, 2];
/// The longest of them.
pub(super) const LONGEST: usize = LENGTHS[0];

/// Tokens at the end of a prompt that are looked through.
const LOOKED_THROUGH: usize = 2048;
/// Contexts that are kept of an answer and its prompt: at most twice so many, which is as many as a table of 2,048 takes before
/// it grows; 0.1 MB.
const OWN: usize = 1792;

/// The last tokens before another one, the rest `u32::MAX`.
pub(super) type Context = [u32; LONGEST];

/// The last `length` tokens of `said`, where there are so many.
pub(super) fn context(said: &[u32], length: usize) -> Option<Context> {
    let last = &said[said.len().checked_sub(length)?..];
    let mut context = [u32::MAX; LONGEST];
    context[..length].copy_from_slice(last);
    Some(context)
}

/// What followed a context.
#[derive(Clone, Copy, Debug)]
pub(super) struct Follower {
    pub(super) token: u32,
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
    pub(super) fn chance(self, hope: f32) -> f32 {
        let (again, others) = (f32::from(self.seen - 1), f32::from(self.others));
        (again + 2.0 * hope) / (again + others + 2.0)
    }

    /// Its chance is a hope rather than experience.
    pub(super) fn is_new(self) -> bool {
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
    /// None yet; twice `most` are kept.
    pub(super) fn new(most: usize) -> Self {
        Self { most, young: HashMap::new(), old: HashMap::new() }
    }

    /// Of an answer that has said so much, its prompt included.
    pub(crate) fn of(said: &[u32]) -> Self {
        let mut phrases = Self::new(OWN);
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

    pub(super) fn after(&self, context: &Context) -> Option<Follower> {
        self.young.get(context).or_else(|| self.old.get(context)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_an_answer_is_bounded_however_long_it_is() {
        let said: Vec<u32> = (0..20_000).collect();
        let mut own = Phrases::of(&said[..10_000]);
        assert!(own.after(&context(&said[..9_999], 4).unwrap()).is_some());
        assert!(own.after(&context(&said[..100], 4).unwrap()).is_none(), "too long ago");
        (10_000..said.len()).for_each(|end| own.note(&said[..=end]));
        assert!(own.young.len() <= OWN && own.old.len() <= OWN);
        assert!(own.young.len() + own.old.len() > OWN);
        assert_eq!(own.after(&context(&said[..19_000], 2).unwrap()).unwrap().token, 19_000);
    }
}
