//! What an answer cost.

use serde::{Serialize, Serializer};

/// Tokens of one request. Prompts count once however many choices they have.
#[expect(clippy::struct_field_names, reason = "the names on the wire")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(in crate::http) struct Usage {
    pub(in crate::http) prompt_tokens: usize,
    pub(in crate::http) completion_tokens: usize,
    pub(in crate::http) total_tokens: usize,
}

impl Usage {
    /// The sum is made here so that it always is one.
    pub(in crate::http) fn new(prompt_tokens: usize, completion_tokens: usize) -> Self {
        let total_tokens = prompt_tokens + completion_tokens;
        Self { prompt_tokens, completion_tokens, total_tokens }
    }
}

/// The `usage` key of a chunk, or of a whole answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum UsageKey {
    /// The stream was not asked for usage: no key.
    Absent,
    /// It was, and this is not its last chunk: `null`.
    Later,
    /// Here it is.
    Now(Usage),
}

impl UsageKey {
    /// For `skip_serializing_if`.
    pub(in crate::http) fn is_absent(&self) -> bool {
        *self == Self::Absent
    }
}

impl Serialize for UsageKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Absent | Self::Later => serializer.serialize_none(),
            Self::Now(usage) => usage.serialize(serializer),
        }
    }
}
