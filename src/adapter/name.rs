//! What an adapter is called.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// A name that moves between versions of an adapter.
///
/// - 1 to [`AdapterName::MAX`] bytes;
/// - ASCII letters and digits, and `.`, `_`, `-` after the first;
/// - so it is no path (no separator, not `..`), no option (no leading `-`), the same in every encoding, and may stand
///   in a header, a URL or a log line as it is;
/// - compared byte for byte: `Sql` and `sql` are two names.
///
/// It is never taken from a request into a path all the same. Names that mean the base itself are refused by whoever
/// gives them that meaning.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AdapterName(Arc<str>);

impl AdapterName {
    /// The longest name, in bytes.
    pub const MAX: usize = 64;

    /// The only way to a name.
    pub fn parse(text: &str) -> Result<Self, BadName> {
        let Some(first) = text.chars().next() else { return Err(BadName::Empty) };
        if text.len() > Self::MAX {
            return Err(BadName::TooLong { bytes: text.len() });
        }
        if !first.is_ascii_alphanumeric() {
            return Err(BadName::Start { character: first });
        }
        let foreign =
            |(_, c): &(usize, char)| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        match text.char_indices().find(foreign) {
            Some((at, character)) => Err(BadName::Character { character, at }),
            None => Ok(Self(text.into())),
        }
    }

    /// The name as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for AdapterName {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        Self::parse(&text)
    }
}

impl From<AdapterName> for String {
    fn from(name: AdapterName) -> Self {
        name.as_str().to_owned()
    }
}

impl fmt::Display for AdapterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AdapterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AdapterName({})", self.0)
    }
}

/// Why a text names no adapter. Characters are printed escaped: the text comes from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// Nothing before a possible `@`.
    #[error("an adapter's name must not be empty")]
    Empty,
    /// Too many bytes.
    #[error("an adapter's name has at most {} bytes, this one has {bytes}", AdapterName::MAX)]
    TooLong {
        /// Bytes of the text.
        bytes: usize,
    },
    /// The first character is special.
    #[error("an adapter's name begins with a letter A-Z, a-z or a digit, not with {character:?}")]
    Start {
        /// The first character.
        character: char,
    },
    /// A character that no name has.
    #[error(
        "an adapter's name has letters A-Z, a-z, digits and . _ - only, not {character:?} (at byte {at})"
    )]
    Character {
        /// The first such character.
        character: char,
        /// Where it is, in bytes.
        at: usize,
    },
    /// What follows the `@` selects nothing.
    #[error(
        "after an adapter's name and @, vN (N from 1, no leading zero) or sha256: and 64 digits 0-9a-f are expected"
    )]
    Selector,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hostile_names_are_refused() {
        let long = "x".repeat(65);
        for text in [
            "",
            "../evil",
            "..",
            ".",
            ".hidden",
            "a/b",
            "a\\b",
            "/etc/passwd",
            &long,
            "name with space",
            "new\nline",
            "nul\0byte",
            "%2e%2e%2fevil",
            "\u{202e}gnp.exe",
            "\u{e4}dapter",
            "a\u{308}dapter",
            "-rf",
            "_x",
            "a;b",
            "*",
            "a@v1",
            "a:b",
            "caf\u{e9}",
        ] {
            let refused = AdapterName::parse(text).expect_err(text).to_string();
            assert!(!refused.contains(['\n', '\0', '\u{202e}']), "{refused:?}");
        }
    }

    #[test]
    fn ordinary_names_are_kept_as_written() {
        let longest = "x".repeat(64);
        for text in ["sql", "Sql", "0", "a..b", "CON", "base", "SmolLM2-135M.Q4_1", &longest] {
            assert_eq!(AdapterName::parse(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn refusals_name_the_operands() {
        assert_eq!(AdapterName::parse(&"x".repeat(65)), Err(BadName::TooLong { bytes: 65 }));
        assert_eq!(AdapterName::parse("a/b"), Err(BadName::Character { character: '/', at: 1 }));
    }

    proptest! {
        #[test]
        fn a_name_is_what_the_pattern_says(text in "[ -~\u{e4}\u{0}]{0,70}") {
            let pattern = regex::Regex::new(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\z").unwrap();
            prop_assert_eq!(AdapterName::parse(&text).is_ok(), pattern.is_match(&text));
        }

        #[test]
        fn every_text_of_the_pattern_is_a_name(text in "[A-Za-z0-9][A-Za-z0-9._-]{0,63}") {
            prop_assert!(AdapterName::parse(&text).is_ok());
        }
    }
}
