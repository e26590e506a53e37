//! What an adapter is, as opposed to what it is called.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Keeps adapter digests apart from any other sha256 in the system.
const TAG: &[u8] = b"chorus-adapter-v1\0";
/// The same of mixes.
const MIX: &[u8] = b"chorus-mix-v1\0";

/// Identifies an adapter by content: sha256 over a tag, the sha256 of its config and that of its weights.
///
/// Names move, digests never do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of an adapter with these two files.
    pub fn of(config: &[u8], weights: &[u8]) -> Self {
        Self::of_hashes(Sha256::digest(config).into(), Sha256::digest(weights).into())
    }

    /// The same where the sha256 of each file is known.
    pub fn of_hashes(config: [u8; 32], weights: [u8; 32]) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(TAG);
        hasher.update(config);
        hasher.update(weights);
        Self(hasher.finalize().into())
    }

    /// The digest of a mix: its adapters in their order, and how much of each.
    pub fn of_mix(parts: impl Iterator<Item = (Self, f32)>) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(MIX);
        for (digest, weight) in parts {
            hasher.update(digest.0);
            hasher.update(weight.to_bits().to_le_bytes());
        }
        Self(hasher.finalize().into())
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl TryFrom<String> for Digest {
    type Error = NotADigest;

    fn try_from(text: String) -> Result<Self, NotADigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// The text is not 64 lower-case hexadecimal digits.
#[derive(Debug, thiserror::Error)]
#[error("not a sha256 in hexadecimal: 64 digits 0-9a-f are expected")]
pub struct NotADigest;

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let nibble = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(NotADigest),
        };
        let text: &[u8; 64] = text.as_bytes().try_into().map_err(|_| NotADigest)?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_chunks::<2>().0) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_parsed_back() {
        let digest = Digest::of(b"{}", b"weights");
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        assert!("abc".parse::<Digest>().is_err());
        assert!("G".repeat(64).parse::<Digest>().is_err());
    }

    #[test]
    fn bytes_cannot_be_moved_between_the_two_files() {
        assert_ne!(Digest::of(b"ab", b"c"), Digest::of(b"a", b"bc"));
    }
}
