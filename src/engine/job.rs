//! What the engine is asked for, and what it answers: token ids and numbers, nothing else.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::guide::Guide;
use crate::lora::Lease;

/// An opaque class of work that the scheduler is fair between: those that want more than there is get as many tokens as each
/// other. Whoever submits decides what it means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane(pub u32);

/// Jobs of one scope may use what others of it have computed. Whoever submits decides what it means; two that must not learn
/// of each other, not even by how fast an answer comes, have two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope(pub u32);

/// Divides a scope further, for those of it that do not trust each other: jobs use what those with the same salt have computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Salt(pub [u8; 32]);

/// One request for one continuation.
#[derive(Debug)]
pub struct Job {
    /// The tokens to continue; never empty, each below the vocabulary's size.
    pub prompt: Vec<u32>,
    /// The adapter to run through, leased for as long as the job lives; `None` is the base.
    pub adapter: Option<Lease>,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// At most so many tokens are generated; 0 only computes the prompt.
    pub max_tokens: usize,
    /// Before so many tokens, no stop token is drawn.
    pub min_tokens: usize,
    /// Tokens that end the continuation (end-of-sequence tokens, unless they are to be ignored).
    pub stop_tokens: Arc<[u32]>,
    /// Says what may come next, where the answer must have a form.
    pub guide: Option<Box<dyn Guide>>,
    /// With `Some(n)`, each token comes with its log-probability and the `n` likeliest ones.
    pub logprobs: Option<usize>,
    /// With `Some(n)`, the prompt's own tokens are scored in the same way, in one [`Event::Prompt`].
    pub prompt_logprobs: Option<usize>,
    /// With `Some`, nothing is generated or scored, whatever the fields above say: the prompt's hidden states are pooled into one
    /// vector, in one [`Event::Pooled`].
    pub pooling: Option<Pooling>,
    /// Which class of work this belongs to.
    pub lane: Lane,
    /// Whose computed prefixes it may use.
    pub scope: Scope,
    /// And with which of them.
    pub salt: Salt,
    /// The job fails with [`Failure::Deadline`] at the first step after this moment.
    pub deadline: Option<Instant>,
}

/// How a token is drawn from the logits.
///
/// The order is: biases, penalties, what may not be drawn at all, then temperature, then `top_k`, `top_p`, `min_p`, then one draw from the job's own generator.
/// Two jobs with equal fields draw equal tokens, whatever runs beside them.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Only the so many likeliest tokens; 0 is all.
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability, in `(0, 1]`.
    pub top_p: f32,
    /// Only tokens at least so likely as this times the likeliest, in `[0, 1]`.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in the prompt or answer (arXiv 1909.05858); 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from the logits of tokens in the answer.
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens in the answer, times their count there.
    pub frequency_penalty: f32,
    /// Added to the logits of single tokens, which are all different.
    pub bias: Arc<[(u32, f32)]>,
    /// Starts the job's own generator.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            bias: Arc::new([]),
            seed: 0,
        }
    }
}

/// Which hidden states make the vector of a prompt: those behind the final norm, which the head would take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over all positions. All are computed, also where keys and values of the first are at hand.
    Mean,
    /// The last position's.
    Last,
}

/// How likely a token was, before penalties, temperature and truncation (as OpenAI and vLLM report it).
#[derive(Clone, Debug, PartialEq)]
pub struct Logprob {
    /// The token that was taken.
    pub token: u32,
    /// Its natural log-probability.
    pub logprob: f32,
    /// The likeliest tokens with their log-probabilities, best first; ties go to the lower id.
    pub top: Vec<(u32, f32)>,
}

/// What a job's stream yields, in order: `Begun` unless it fails before, at most one `Prompt` or `Pooled`, any number of `Token`,
/// one `Finished` or `Failed`.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Its first rows are in a step.
    Begun {
        /// Tokens of the prompt that need not be computed, because their keys and values were at hand.
        cached: usize,
        /// How long it was in the queue. Whoever reads this may have been late in doing so.
        waited: Duration,
    },
    /// Scores of the prompt's tokens from the second on (nothing predicts the first).
    Prompt(Vec<Logprob>),
    /// The prompt's pooled hidden states `[hidden]`, scaled to length 1.
    Pooled(Vec<f32>),
    /// The next token of the answer. A stop token is not sent.
    Token {
        /// Its id.
        id: u32,
        /// Present where the job asked for it.
        logprob: Option<Logprob>,
    },
    /// The answer is complete.
    Finished(Finish),
    /// The answer cannot be completed; what was sent so far is right.
    Failed(Failure),
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token was drawn, or the guide says that nothing more may come.
    Stop,
    /// `max_tokens` were generated.
    Length,
}

/// Why an answer could not be completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The job's deadline passed.
    #[error("the request's deadline passed before the answer was complete")]
    Deadline,
    /// The numbers overflowed in this row; neighbours are not affected.
    #[error("the model produced a value that is not a number")]
    NotANumber,
    /// The job's guide could not say what may come next.
    #[error("what the answer must look like takes too much work to follow")]
    Guide,
    /// The step that held this job failed.
    #[error("the engine could not compute this step")]
    Step,
    /// The engine is stopping.
    #[error("the server is shutting down")]
    Stopping,
}

impl Failure {
    /// The same in one word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Deadline => "deadline",
            Self::NotANumber => "not_a_number",
            Self::Guide => "guide",
            Self::Step => "step",
            Self::Stopping => "stopping",
        }
    }
}

/// Why a job was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The queue has its bound.
    #[error("{waiting} requests are waiting already")]
    Full {
        /// Jobs in the queue.
        waiting: usize,
    },
    /// By the pace of the last seconds it would wait for longer than jobs may.
    #[error("{waiting} requests are waiting, and a further one would for about {} s", wait.as_secs())]
    Slow {
        /// Jobs in the queue.
        waiting: usize,
        /// How long it would wait.
        wait: Duration,
        /// How long it may.
        most: Duration,
    },
    /// Prompt and answer do not fit into the context.
    #[error("{tokens} tokens are asked for and the context holds {context}")]
    TooLong {
        /// Prompt tokens plus `max_tokens`.
        tokens: usize,
        /// The most one sequence may have.
        context: usize,
    },
    /// The prompt has no token, or one outside the vocabulary.
    #[error("the prompt must have at least one token, each below {vocab}")]
    BadPrompt {
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// The engine is stopping.
    #[error("the engine is stopping")]
    Stopping,
}
