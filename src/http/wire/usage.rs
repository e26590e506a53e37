//! What an answer cost.

use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::shape;

/// Tokens of one request. Prompts count once however many choices they have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(in crate::http) struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptTokens,
}

/// Of the prompts' tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
struct PromptTokens {
    /// Those that had been computed when the prompt's first choice began.
    cached_tokens: usize,
}

impl Usage {
    /// Before anything is answered.
    pub(in crate::http) fn of_prompts(tokens: usize) -> Self {
        Self { prompt_tokens: tokens, total_tokens: tokens, ..Self::default() }
    }

    /// A choice has ended: so many tokens of it, and so many of its prompt that were at hand.
    pub(in crate::http) fn add(&mut self, completion: usize, cached: usize) {
        self.completion_tokens += completion;
        self.total_tokens += completion;
        self.prompt_tokens_details.cached_tokens += cached;
    }
}

impl Usage {
    /// Tokens of the prompts.
    pub(in crate::http) fn prompt(self) -> usize {
        self.prompt_tokens
    }

    /// Those of them that had been computed before.
    pub(in crate::http) fn cached(self) -> usize {
        self.prompt_tokens_details.cached_tokens
    }

    /// Tokens generated.
    pub(in crate::http) fn completion(self) -> usize {
        self.completion_tokens
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

shape::shape!(UsageKey, "UsageKey", shape::of::<Option<Usage>>());

impl Serialize for UsageKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Absent | Self::Later => serializer.serialize_none(),
            Self::Now(usage) => usage.serialize(serializer),
        }
    }
}
