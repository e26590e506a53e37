//! What was used, by whom and when, and sums of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

use crate::tenant::TenantId;

/// Seconds.
const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// Who has used something.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// Whose request it was.
    pub tenant: TenantId,
    /// The adapter that answered, or that was uploaded; `None` is the base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<Used>,
}

/// A version of an adapter, as its tenant calls it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Used {
    /// Its name.
    pub name: String,
    /// The version's number.
    pub version: u32,
}

/// How much was used. What is zero is not written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "the names say all there is")]
pub struct Spent {
    #[serde(skip_serializing_if = "is_zero")]
    pub requests: u64,
    /// Once for each prompt, however many choices it has.
    #[serde(skip_serializing_if = "is_zero")]
    pub prompt_tokens: u64,
    /// Those of them that need not be computed.
    #[serde(skip_serializing_if = "is_zero")]
    pub cached_tokens: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub generated_tokens: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub uploads: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub upload_bytes: u64,
}

/// One use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// When it ended, in unix seconds.
    pub at: u64,
    /// By whom.
    pub account: Account,
    /// How much.
    pub spent: Spent,
}

/// How finely sums are told apart in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Period {
    /// As fine as sheets are.
    Hour,
    /// Of UTC.
    #[default]
    Day,
    /// Not at all.
    Total,
}

impl Period {
    /// When the period of an hour begins, in unix seconds.
    pub fn of(self, hour: u64) -> u64 {
        match self {
            Self::Hour => hour,
            Self::Day => hour / DAY * DAY,
            Self::Total => 0,
        }
    }
}

impl Spent {
    /// Adds what else was used.
    pub fn add(&mut self, more: &Self) {
        for (sum, more) in [
            (&mut self.requests, more.requests),
            (&mut self.prompt_tokens, more.prompt_tokens),
            (&mut self.cached_tokens, more.cached_tokens),
            (&mut self.generated_tokens, more.generated_tokens),
            (&mut self.uploads, more.uploads),
            (&mut self.upload_bytes, more.upload_bytes),
        ] {
            *sum = sum.saturating_add(more);
        }
    }
}

/// What was used, by account and by the time, in unix seconds, at which a period begins; in journals and sheets that is an hour.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums(BTreeMap<(u64, Account), Spent>);

impl Sums {
    /// Adds one use to its hour.
    pub fn add(&mut self, entry: &Entry) {
        let hour = entry.at / HOUR * HOUR;
        self.0.entry((hour, entry.account.clone())).or_default().add(&entry.spent);
    }

    /// Adds of `more` what is `wanted`, at the time that `period` makes of its own.
    pub(super) fn add_all(
        &mut self,
        more: &Self,
        wanted: impl Fn(u64, &Account) -> bool,
        period: impl Fn(u64) -> u64,
    ) {
        for ((hour, account), spent) in &more.0 {
            if wanted(*hour, account) {
                self.0.entry((period(*hour), account.clone())).or_default().add(spent);
            }
        }
    }

    /// Nothing was used.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One use for each row, at the time of that.
    pub(super) fn entries(&self) -> impl Iterator<Item = Entry> {
        self.rows().map(|(at, account, spent)| Entry {
            at,
            account: account.clone(),
            spent: *spent,
        })
    }

    /// By time, then by account.
    pub fn rows(&self) -> impl Iterator<Item = (u64, &Account, &Spent)> {
        self.0.iter().map(|((at, account), spent)| (*at, account, spent))
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Serialize for Sums {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.entries())
    }
}

impl<'de> Deserialize<'de> for Sums {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut sums = Self::default();
        for entry in Vec::<Entry>::deserialize(deserializer)? {
            sums.add(&entry);
        }
        Ok(sums)
    }
}
