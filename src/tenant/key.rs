//! Secrets that callers show.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// What every key begins with, so that it is recognised where it should not be: in a repository, in a log.
const PREFIX: &str = "chorus-";
/// Random bytes of a key.
const RANDOM: usize = 32;
/// The longest text that is looked at as a key.
const LONGEST: usize = 512;
/// The least characters of a key that an operator thinks up.
const SHORTEST: usize = 16;

/// A key as its holder has it. It is shown once, when it is made, and never printed by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(String);

/// The text cannot be an operator's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an operator key has {SHORTEST} to {LONGEST} printable ASCII characters without spaces; `openssl rand -hex 32` makes a good one"
)]
pub struct BadKey;

impl Key {
    /// A new one, which nobody can guess.
    pub(super) fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; RANDOM];
        getrandom::fill(&mut bytes)?;
        let digits = bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        Ok(Self(PREFIX.to_owned() + &digits))
    }

    /// One that an operator has thought up.
    pub fn parse(text: &str) -> Result<Self, BadKey> {
        let fits = (SHORTEST..=LONGEST).contains(&text.len());
        if fits && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadKey)
        }
    }

    /// The secret itself, to be handed to its holder.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What is kept of it.
    pub(super) fn hash(&self) -> KeyHash {
        KeyHash::of(&self.0).expect("a key is not too long")
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// SHA-256 of a key. Keys are random enough that a plain hash hides them; of the operator's own it is the operator who says so.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct KeyHash([u8; 32]);

impl KeyHash {
    /// `None` for what is too long to be a key.
    pub(super) fn of(text: &str) -> Option<Self> {
        (text.len() <= LONGEST).then(|| Self(Sha256::digest(text).into()))
    }

    /// Takes the same time whether they are equal or not.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    /// What names the key from now on.
    pub(super) fn id(&self) -> KeyId {
        let [a, b, c, d, ..] = self.0;
        KeyId(format!("{:08x}", u32::from_be_bytes([a, b, c, d])))
    }
}

/// The text is no hash.
#[derive(Debug, thiserror::Error)]
#[error("not a sha256 in hexadecimal")]
pub(super) struct NotAHash;

impl TryFrom<String> for KeyHash {
    type Error = NotAHash;

    fn try_from(text: String) -> Result<Self, NotAHash> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(NotAHash);
        }
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| NotAHash)?;
        }
        Ok(Self(bytes))
    }
}

impl From<KeyHash> for String {
    fn from(hash: KeyHash) -> Self {
        hash.0.iter().fold(Self::new(), |text, byte| format!("{text}{byte:02x}"))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({}..)", self.id())
    }
}

/// Names a key without giving it away: the first eight digits of its SHA-256.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(String);

impl KeyId {
    /// The id that somebody wrote, as it is; there may be no such key.
    pub fn named(text: &str) -> Self {
        // Longer ones name nothing, and are kept no longer than it takes to say so.
        Self(text.chars().take(9).collect())
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_and_are_not_printed() {
        let (one, two) = (Key::random().unwrap(), Key::random().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.reveal().len(), PREFIX.len() + 2 * RANDOM);
        assert!(one.reveal().starts_with(PREFIX));
        for shown in [format!("{one:?}"), format!("{:?}", one.hash())] {
            assert!(!shown.contains(&one.reveal()[PREFIX.len()..]), "{shown}");
        }
        assert!(one.hash().is(&one.hash()) && !one.hash().is(&two.hash()));
    }

    #[test]
    fn a_hash_is_written_and_read_back() {
        let hash = Key::random().unwrap().hash();
        let text = serde_json::to_string(&hash).unwrap();
        assert_eq!(serde_json::from_str::<KeyHash>(&text).unwrap(), hash);
        assert!(text[1..].starts_with(hash.id().as_str()));
        for bad in ["\"\"", "\"ab\"", &text.to_uppercase()] {
            assert!(serde_json::from_str::<KeyHash>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_operators_own_key_is_long_enough_and_fits_a_header() {
        Key::parse("correct-horse-battery").unwrap();
        let long = "x".repeat(LONGEST + 1);
        for bad in ["", "short", "with a space in it", "umlaut-\u{e4}-in-the-key", &long] {
            assert_eq!(Key::parse(bad), Err(BadKey), "{bad}");
        }
        assert!(KeyHash::of(&long).is_none());
    }
}
