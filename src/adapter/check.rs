//! Whether an upload may become visible: its files against the base, then one forward through it.

use std::{io, sync::Arc};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use utoipa::ToSchema;

use super::{Facts, aside::aside, files::Files};
use crate::lora::{
    self, Adapter, Base, BuildError, Extras, Lease, Limits, Matrices, SmokeTest, peft,
};

/// Runs an adapter that nobody else can see yet.
pub trait Trial: Send + Sync {
    /// Computes the same tokens through the base and through the adapter.
    fn probe(&self, adapter: Lease) -> BoxFuture<'_, Result<(), Unproved>>;

    /// Makes sure that what it brings can be used, and answers its smoke test, where it has one.
    fn rehearse(
        &self,
        adapter: Lease,
        extras: Arc<Extras>,
    ) -> BoxFuture<'_, Result<Option<String>, Unproved>>;
}

/// How an adapter's smoke test went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Smoke {
    /// The answer had what it must have.
    pub passed: bool,
    /// What was answered; not all of it where it is long.
    pub answer: String,
}

impl Smoke {
    /// Most characters of an answer that are kept.
    const LONGEST: usize = 500;

    fn new(test: &SmokeTest, answer: &str) -> Self {
        let passed = test.accepts(answer);
        Self { passed, answer: answer.chars().take(Self::LONGEST).collect() }
    }
}

/// Why a trial did not show that the adapter works.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unproved {
    /// It computes what the base does.
    #[error(
        "the adapter changes nothing: through it the base gives the very same numbers, as with an adapter that was never trained (lora_B is zero)"
    )]
    NoEffect,
    /// It computes something that is no number.
    #[error(
        "the adapter's numbers overflow: through it the base gives values that are not finite; were its weights saved at another scale?"
    )]
    NotFinite,
    /// Its chat template cannot be used.
    #[error("the chat template in the `chorus` object of adapter_config.json cannot be used: {0}")]
    Template(String),
    /// There was no place to try it.
    #[error("the adapter could not be tried now: {0}")]
    NotNow(String),
}

/// Why an upload is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// Its files are no adapter for this base.
    #[error(transparent)]
    Refused(#[from] lora::Refusal),
    /// It could never be loaded.
    #[error(
        "the adapter takes {memory} bytes of memory, and all adapters of this server together may take {budget}"
    )]
    TooLarge {
        /// Bytes it takes.
        memory: usize,
        /// Bytes there are.
        budget: usize,
    },
    /// It was tried.
    #[error(transparent)]
    Unproved(#[from] Unproved),
    /// On this base it does not do its job any more.
    #[error("the smoke test failed on this base model: it was answered {answer:?}")]
    Smoke {
        /// The answer, or its beginning.
        answer: String,
    },
    /// There is no memory to try it in.
    #[error("the system has no {bytes} bytes of memory left to try it")]
    NoMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// The check broke off.
    #[error("the adapter could not be checked: {0}")]
    BrokenOff(io::Error),
}

impl From<BuildError> for Unfit {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::Refused(refusal) => Self::Refused(refusal),
            BuildError::NoMemory { bytes } => Self::NoMemory { bytes },
        }
    }
}

/// Reads, builds and tries an adapter, which takes memory beside the cache. The `turn` is kept until all of that memory is
/// free again, also where nobody waits for the outcome any more.
pub(super) async fn check(
    load: impl FnOnce() -> Result<Files, Unfit> + Send + 'static,
    base: &Arc<dyn Base>,
    (limits, budget, matrices): (&Limits, usize, Matrices),
    turn: OwnedSemaphorePermit,
    trial: &dyn Trial,
) -> Result<(Facts, Option<Smoke>), Unfit> {
    let (sender, receiver) = oneshot::channel();
    let (base, limits) = (Arc::clone(base), *limits);
    let work = move || {
        let bounds = (&limits, budget, matrices);
        let built = load().and_then(|files| build(&files, &*base, bounds));
        drop(sender.send(built.map(|(facts, adapter)| (facts, adapter, turn))));
    };
    aside(work).map_err(Unfit::BrokenOff)?;
    let built = receiver.await.map_err(|lost| Unfit::BrokenOff(io::Error::other(lost)))?;
    let (facts, adapter, turn) = built?;
    let (adapter, turn) = (Arc::new(adapter), Arc::new(turn));
    let lease = || {
        let turn = Arc::clone(&turn);
        Lease::new(Arc::clone(&adapter), move || drop(turn))
    };
    trial.probe(lease()).await?;
    let answer = if facts.extras.is_empty() {
        None
    } else {
        trial.rehearse(lease(), Arc::clone(&facts.extras)).await?
    };
    let test = facts.extras.smoke_test.as_ref();
    let smoke = test.zip(answer).map(|(test, answer)| Smoke::new(test, &answer));
    Ok((facts, smoke))
}

fn build(
    files: &Files,
    base: &dyn Base,
    (limits, budget, matrices): (&Limits, usize, Matrices),
) -> Result<(Facts, Adapter), Unfit> {
    let sites = base.sites();
    let manifest = peft::read(&files.config, &files.weights, sites, limits)?;
    let memory = Adapter::planned_memory(&manifest, sites);
    if memory.of(matrices) > budget {
        return Err(Unfit::TooLarge { memory: memory.of(matrices), budget });
    }
    let digest = files.digest();
    let adapter = Adapter::build(digest, &manifest, base, matrices)?;
    let facts = Facts {
        digest,
        bytes: files.bytes(),
        memory,
        rank: manifest.rank,
        targets: manifest.targets,
        extras: Arc::new(manifest.extras),
    };
    Ok((facts, adapter))
}
