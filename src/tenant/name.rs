//! What a tenant is called, by its operator.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// 1 to 64 of `a-z`, `0-9` and, after the first, `-`. So it may stand in a URL, a log line or a metric's label as it is.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantName(Arc<str>);

/// The text names no tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a tenant's name has 1 to 64 characters a-z, 0-9 and - and begins with none of -")]
pub struct BadTenantName;

impl TenantName {
    const MAX: usize = 64;
    /// The tenant that is always there.
    pub(super) const DEFAULT: &'static str = "default";

    /// The only way to a name.
    pub fn parse(text: &str) -> Result<Self, BadTenantName> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let fits = !text.is_empty() && text.len() <= Self::MAX && !text.starts_with('-');
        if fits && text.bytes().all(plain) { Ok(Self(text.into())) } else { Err(BadTenantName) }
    }

    /// The name as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for TenantName {
    type Error = BadTenantName;

    fn try_from(text: String) -> Result<Self, BadTenantName> {
        Self::parse(&text)
    }
}

impl From<TenantName> for String {
    fn from(name: TenantName) -> Self {
        name.as_str().to_owned()
    }
}

impl fmt::Display for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TenantName({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        let longest = "x".repeat(64);
        for text in ["acme", "0", "a-b-", &longest] {
            assert_eq!(TenantName::parse(text).unwrap().as_str(), text);
        }
        let long = "x".repeat(65);
        for text in ["", "-a", "Acme", "a_b", "a.b", "a/b", "a b", "\u{e4}", &long] {
            assert!(TenantName::parse(text).is_err(), "{text}");
        }
    }
}
