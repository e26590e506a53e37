//! A share of a name's requests for a version that is being tried out.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;

use super::AdapterName;

/// Which version gets how many of the requests that name no version; the others go to the active one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Canary {
    /// The version.
    pub version: u32,
    /// Of a hundred, from 1 to 99.
    pub percent: u8,
}

/// What a request is told apart by: those with one lot get one version, as long as the canary is what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lot(String);

impl Lot {
    /// Whose request it is, or which.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl Canary {
    /// Whether a request for this name goes to the canary's version.
    ///
    /// Who does is another draw for each name and version, so that it is not always the same people, and a greater share
    /// takes more in and lets nobody out.
    pub(super) fn draws(self, name: &AdapterName, Lot(lot): &Lot) -> bool {
        let mut hasher = Sha256::new();
        for part in [name.as_str().as_bytes(), &self.version.to_be_bytes(), lot.as_bytes()] {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        let hash: [u8; 32] = hasher.finalize().into();
        let [a, b, c, d, ..] = hash;
        // Uniform but for one part in 40 million.
        u32::from_be_bytes([a, b, c, d]) % 100 < u32::from(self.percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(version: u32, percent: u8) -> Vec<bool> {
        let name = AdapterName::parse("sql").unwrap();
        let canary = Canary { version, percent };
        (0..10_000).map(|user| canary.draws(&name, &Lot::new(format!("user {user}")))).collect()
    }

    fn count(drawn: &[bool]) -> usize {
        drawn.iter().filter(|drawn| **drawn).count()
    }

    #[test]
    fn the_share_is_what_was_asked_for_and_sticks() {
        // Four standard deviations.
        for (percent, spread) in [(1, 40), (10, 120), (50, 200), (99, 40)] {
            let found = count(&drawn(2, percent));
            assert!(found.abs_diff(usize::from(percent) * 100) < spread, "{found} for {percent} %");
        }
        assert_eq!(drawn(2, 30), drawn(2, 30));
    }

    #[test]
    fn a_greater_share_lets_nobody_out_and_another_version_draws_anew() {
        let (few, many) = (drawn(2, 10), drawn(2, 40));
        assert!(few.iter().zip(&many).all(|(few, many)| !few || *many));
        let other = drawn(3, 10);
        let both: Vec<_> = few.iter().zip(&other).map(|(one, two)| *one && *two).collect();
        assert!(count(&both) < 200, "{} of about 100", count(&both));
    }
}
