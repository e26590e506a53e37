//! Which state of a named adapter is meant: what a request asks for, and what it is pinned to.

use std::fmt;

use super::{AdapterName, BadName};
use crate::lora::Digest;

/// What a request asks for: `NAME`, `NAME@vN` or `NAME@sha256:HEX`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// Whatever the name points to when the request arrives.
    Active(AdapterName),
    /// One version of the name's history, counted from 1.
    Version(AdapterName, u32),
    /// The version of the name's own history that has this content.
    Digest(AdapterName, Digest),
}

impl Wanted {
    /// Reads one of the three forms; there is exactly one spelling of each value.
    pub fn parse(text: &str) -> Result<Self, BadName> {
        let Some((name, selector)) = text.split_once('@') else {
            return AdapterName::parse(text).map(Self::Active);
        };
        let name = AdapterName::parse(name)?;
        if let Some(digest) = selector.strip_prefix("sha256:") {
            let digest = digest.parse().map_err(|_| BadName::Selector)?;
            return Ok(Self::Digest(name, digest));
        }
        let version = selector.strip_prefix('v').and_then(version).ok_or(BadName::Selector)?;
        Ok(Self::Version(name, version))
    }

    /// Whose history is looked at.
    pub fn name(&self) -> &AdapterName {
        match self {
            Self::Active(name) | Self::Version(name, _) | Self::Digest(name, _) => name,
        }
    }
}

/// Digits without sign or leading zero, at least 1.
fn version(digits: &str) -> Option<u32> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
    if plain { digits.parse().ok() } else { None }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Active(name) => name.fmt(f),
            Self::Version(name, version) => write!(f, "{name}@v{version}"),
            Self::Digest(name, digest) => write!(f, "{name}@sha256:{digest}"),
        }
    }
}

/// What a request is pinned to from its arrival to its end, however the name moves meanwhile.
///
/// Prints as the `X-Chorus-Adapter` header has it: `NAME@vN;sha256=HEX`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Revision {
    /// The name the request used.
    pub name: AdapterName,
    /// Which entry of the name's history, counted from 1.
    pub version: u32,
    /// The content of that entry.
    pub digest: Digest,
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@v{};sha256={}", self.name, self.version, self.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> AdapterName {
        AdapterName::parse(text).unwrap()
    }

    #[test]
    fn each_form_is_read_and_printed_back() {
        let digest = Digest::of(b"{}", b"");
        for (text, wanted) in [
            ("sql".to_owned(), Wanted::Active(name("sql"))),
            ("sql@v1".to_owned(), Wanted::Version(name("sql"), 1)),
            (format!("sql@v{}", u32::MAX), Wanted::Version(name("sql"), u32::MAX)),
            (format!("sql@sha256:{digest}"), Wanted::Digest(name("sql"), digest)),
        ] {
            assert_eq!(Wanted::parse(&text).unwrap(), wanted);
            assert_eq!(wanted.to_string(), text);
            assert_eq!(wanted.name().as_str(), "sql");
        }
    }

    #[test]
    fn other_spellings_are_refused() {
        let digest = Digest::of(b"{}", b"").to_string();
        for text in [
            "sql@",
            "sql@v",
            "sql@v0",
            "sql@v01",
            "sql@v+1",
            "sql@v-1",
            "sql@v1 ",
            "sql@V1",
            "sql@1",
            "sql@v1@v1",
            "sql@v4294967296",
            "sql@v\u{664}",
            "sql@sha256:",
            "sql@sha256:abc",
            &format!("sql@sha256:{}", digest.to_uppercase()),
            &format!("sql@sha256={digest}"),
            &format!("sql@sha256:{digest}0"),
            &format!("sql@{digest}"),
        ] {
            assert_eq!(Wanted::parse(text), Err(BadName::Selector), "{text}");
        }
        assert_eq!(Wanted::parse("@v1"), Err(BadName::Empty));
        assert_eq!(Wanted::parse(" sql@v1"), Err(BadName::Start { character: ' ' }));
    }

    #[test]
    fn a_revision_prints_as_the_header_has_it() {
        let digest = Digest::of(b"{}", b"");
        let revision = Revision { name: name("sql"), version: 3, digest };
        assert_eq!(revision.to_string(), format!("sql@v3;sha256={digest}"));
    }
}
