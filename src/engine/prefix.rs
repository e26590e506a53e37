//! What a full KV page holds, as a name: equal names are equal keys and values, bit for bit.
//!
//! Keys and values of a position depend on all tokens up to it, on the adapter and on the base, and on nothing else: no kernel
//! lets a neighbour or a chunk decide a bit. An engine has one base, so that the name of a page is a chain of SHA-256 over
//! scope, salt, adapter and tokens. Nobody can be shown another's page: the scope is in it, and it is the whole of 256 bits.

use sha2::{Digest as _, Sha256};

use super::job::{Salt, Scope};
use crate::{lora::Digest, model::PAGE};

/// Sets these hashes apart from all others.
const TAG: &[u8] = b"chorus kv page 2";

/// The name of a full page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key([u8; 32]);

/// The names of a sequence's pages, one after the other.
#[derive(Debug)]
pub(crate) struct Chain {
    last: [u8; 32],
    /// Pages named.
    pages: usize,
}

impl Chain {
    /// Of a sequence without pages.
    pub(crate) fn new((scope, salt): (Scope, Salt), adapter: Option<Digest>) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(TAG);
        hasher.update(scope.0.to_le_bytes());
        hasher.update(salt.0);
        // The base is the only one without 32 bytes.
        if let Some(digest) = adapter {
            hasher.update(digest.as_bytes());
        }
        Self { last: hasher.finalize().into(), pages: 0 }
    }

    /// The names of those pages that `tokens`, all of the sequence so far, fill and that have not been named yet.
    pub(crate) fn extend(&mut self, tokens: &[u32]) -> Vec<Key> {
        let full = tokens.as_chunks::<PAGE>().0.iter().skip(self.pages);
        let mut keys = Vec::new();
        for page in full {
            let mut hasher = Sha256::new();
            hasher.update(self.last);
            for token in page {
                hasher.update(token.to_le_bytes());
            }
            self.last = hasher.finalize().into();
            keys.push(Key(self.last));
        }
        self.pages += keys.len();
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(scope: u32, adapter: Option<u8>, tokens: &[u32]) -> Vec<Key> {
        let adapter = adapter.map(|id| Digest::of(&[id], &[]));
        Chain::new((Scope(scope), Salt::default()), adapter).extend(tokens)
    }

    #[test]
    fn a_name_says_all_that_a_page_depends_on() {
        let tokens: Vec<u32> = (0..40).collect();
        let own = keys(0, None, &tokens);
        assert_eq!(own.len(), 2, "only full pages");
        assert_eq!(own, keys(0, None, &tokens[..32]));
        let mut other = tokens.clone();
        other[0] = 7;
        for different in [keys(1, None, &tokens), keys(0, Some(0), &tokens), keys(0, None, &other)]
        {
            assert!(different.iter().all(|key| !own.contains(key)));
        }
        other = tokens.clone();
        other[31] = 7;
        assert_eq!(keys(0, None, &other)[0], own[0]);
        assert_ne!(keys(0, None, &other)[1], own[1]);
    }

    #[test]
    fn names_come_as_pages_fill() {
        let tokens: Vec<u32> = (0..50).collect();
        let mut chain = Chain::new((Scope(0), Salt::default()), None);
        let mut grown = Vec::new();
        for end in 1..=tokens.len() {
            grown.extend(chain.extend(&tokens[..end]));
            assert_eq!(grown.len(), end / PAGE);
        }
        assert_eq!(grown, keys(0, None, &tokens));
    }
}
