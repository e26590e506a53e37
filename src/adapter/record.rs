//! What the store keeps of an adapter's life: one record a change, never rewritten.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{AdapterName, Canary, Smoke};
use crate::{
    lora::{Digest, Extras, Memory},
    store::BlobKey,
    tenant::TenantId,
};

/// One change, as it was acknowledged. The log of all of them is the audit log too: who, what, when.
///
/// A field or change that is not known here makes the record unreadable: a server must not guess what a newer one decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// Unix time in milliseconds, by the clock of the server that wrote it; the order is that of the log, not of this.
    pub(super) at: u64,
    /// Who asked for it.
    pub(super) by: String,
    /// Whose adapter it is.
    pub(super) tenant: TenantId,
    /// The name that is changed.
    pub(super) name: AdapterName,
    /// How.
    pub(super) change: Change,
}

/// What happened to a name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Change {
    /// A version came, checked and with its bytes in the store.
    Stored(Box<Stored>),
    /// The name points to this version from now on.
    Activated {
        /// Its number.
        version: u32,
    },
    /// A version gets a share of the requests that name none; the next activation ends that.
    Canary(Canary),
    /// No version does any more.
    CanaryEnded,
    /// The active version is to be kept in memory.
    Pinned,
    /// It may be evicted again.
    Unpinned,
    /// The name, or one version of it, is gone. Its number is never given again.
    Removed {
        /// All versions where it is `None`.
        version: Option<u32>,
    },
    /// A version was checked against another base, or its smoke test went another way on one that it was checked against.
    Validated {
        /// Its number.
        version: u32,
        /// sha256 of the base.
        base: String,
        /// How its smoke test went there, where it has one; older records do not say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        smoke: Option<Smoke>,
    },
}

/// As a line of the log has it.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stored(stored) => {
                let Stored { version, digest, activate, smoke, .. } = &**stored;
                let active = if *activate { ", active" } else { "" };
                let failed = failed(smoke.as_ref());
                write!(f, "version {version} stored{active}{failed}, sha256 {digest}")
            }
            Self::Activated { version } => write!(f, "version {version} activated"),
            Self::Canary(Canary { version, percent }) => {
                write!(f, "version {version} gets {percent} % of the requests")
            }
            Self::CanaryEnded => f.write_str("the canary has ended"),
            Self::Pinned => f.write_str("pinned"),
            Self::Unpinned => f.write_str("unpinned"),
            Self::Removed { version: Some(version) } => write!(f, "version {version} removed"),
            Self::Removed { version: None } => f.write_str("removed"),
            Self::Validated { version, base, smoke } => {
                let failed = failed(smoke.as_ref());
                write!(f, "version {version} validated on base {base}{failed}")
            }
        }
    }
}

fn failed(smoke: Option<&Smoke>) -> &'static str {
    match smoke {
        Some(Smoke { passed: false, .. }) => ", its smoke test failed",
        _ => "",
    }
}

/// A version as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stored {
    /// Greater than all numbers that the name had before.
    pub(super) version: u32,
    /// The content.
    pub(super) digest: Digest,
    /// `adapter_config.json`
    pub(super) config: Blob,
    /// `adapter_model.safetensors`
    pub(super) weights: Blob,
    /// Bytes of memory that it takes with its matrices in the type they were trained in, as the server found which checked it.
    pub(super) memory: usize,
    /// The same with 8-bit matrices; older records do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) memory_int8: Option<usize>,
    /// Its largest rank.
    pub(super) rank: usize,
    /// What it changes in the base.
    pub(super) targets: Vec<String>,
    /// sha256 of the base that it was checked against.
    pub(super) base: String,
    /// Whether the name points to it from now on.
    pub(super) activate: bool,
    /// What it brings besides weights.
    #[serde(default, skip_serializing_if = "Extras::is_empty")]
    pub(super) extras: Extras,
    /// How its smoke test went on the server which checked it, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) smoke: Option<Smoke>,
}

impl Stored {
    /// What it takes either way: where that is not said, what is enough.
    pub(super) fn memory(&self) -> Memory {
        Memory { native: self.memory, int8: self.memory_int8.unwrap_or(self.memory) }
    }
}

/// A file in the store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Blob {
    /// Where it lies.
    pub(super) key: BlobKey,
    /// Its length.
    pub(super) bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_written_as_they_are_documented_and_read_back() {
        let name = AdapterName::parse("sql").unwrap();
        let record = |change| Record {
            at: 1,
            by: "open".to_owned(),
            tenant: TenantId::DEFAULT,
            name: name.clone(),
            change,
        };
        for (change, json) in [
            (Change::Pinned, r#""pinned""#),
            (Change::Activated { version: 2 }, r#"{"activated":{"version":2}}"#),
            (
                Change::Canary(Canary { version: 2, percent: 5 }),
                r#"{"canary":{"version":2,"percent":5}}"#,
            ),
            (Change::CanaryEnded, r#""canary_ended""#),
            (Change::Removed { version: None }, r#"{"removed":{"version":null}}"#),
        ] {
            let record = record(change);
            let text = serde_json::to_string(&record).unwrap();
            let whole =
                format!(r#"{{"at":1,"by":"open","tenant":0,"name":"sql","change":{json}}}"#);
            assert_eq!(text, whole);
            assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
        }
    }

    #[test]
    fn a_version_of_before_there_were_extras_is_read() {
        let (key, digest) = (format!("{}.{:016x}", "ab".repeat(32), 7), "cd".repeat(32));
        let blob = format!(r#"{{"key":"{key}","bytes":5}}"#);
        let json = format!(
            r#"{{"stored":{{"version":1,"digest":"{digest}","config":{blob},"weights":{blob},"memory":20,"rank":4,"targets":["q_proj"],"base":"x","activate":true}}}}"#
        );
        let change: Change = serde_json::from_str(&json).unwrap();
        let Change::Stored(stored) = &change else { panic!("{change}") };
        assert!(stored.extras.is_empty() && stored.smoke.is_none());
        assert_eq!(serde_json::to_string(&change).unwrap(), json, "and written as it was");
    }

    #[test]
    fn a_validation_of_before_it_had_a_result_is_read() {
        let old = r#"{"validated":{"version":2,"base":"ba5e"}}"#;
        let change: Change = serde_json::from_str(old).unwrap();
        let bare = Change::Validated { version: 2, base: "ba5e".to_owned(), smoke: None };
        assert_eq!(change, bare);
        assert_eq!(serde_json::to_string(&change).unwrap(), old, "and older servers read it");
        let smoke = Some(Smoke { passed: false, answer: "Rice".to_owned() });
        let change = Change::Validated { version: 2, base: "ba5e".to_owned(), smoke };
        let text = serde_json::to_string(&change).unwrap();
        assert_eq!(serde_json::from_str::<Change>(&text).unwrap(), change);
        assert!(change.to_string().ends_with("its smoke test failed"), "{change}");
    }

    #[test]
    fn a_version_that_was_stored_before_eight_bits_is_said_to_take_no_less() {
        let (digest, put) = (Digest::of(b"", b""), "0".repeat(16));
        let blob = format!(r#"{{"key":"{digest}.{put}","bytes":5}}"#);
        let json = format!(
            r#"{{"version":1,"digest":"{digest}","config":{blob},"weights":{blob},"memory":20,
                 "rank":4,"targets":["q_proj"],"base":"ba5e","activate":true}}"#
        );
        let stored: Stored = serde_json::from_str(&json).unwrap();
        assert_eq!(stored.memory(), Memory { native: 20, int8: 20 });
        let stored = Stored { memory_int8: Some(11), ..stored };
        assert_eq!(stored.memory(), Memory { native: 20, int8: 11 });
        let text = serde_json::to_string(&stored).unwrap();
        assert_eq!(serde_json::from_str::<Stored>(&text).unwrap(), stored);
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        for json in [
            r#"{"at":1,"by":"open","tenant":0,"name":"sql","change":"melted"}"#,
            r#"{"at":1,"by":"open","tenant":0,"name":"../sql","change":"pinned"}"#,
            r#"{"at":1,"by":"open","tenant":0,"name":"sql","change":"pinned","why":"?"}"#,
            r#"{"at":1,"by":"open","tenant":0,"name":"sql","change":{"activated":{"version":2,"percent":5}}}"#,
        ] {
            assert!(serde_json::from_str::<Record>(json).is_err(), "{json}");
        }
    }
}
