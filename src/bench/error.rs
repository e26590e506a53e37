//! Why no load was put on a server, or nothing came of it.

use std::{io, path::PathBuf};

/// Each message says what, where and, if it is not plain, what to do.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Nobody listens there.
    #[error("{url} does not answer; is a server running there? --url names another")]
    Unreachable {
        /// What was asked.
        url: String,
        /// What the connection came to.
        source: reqwest::Error,
    },
    /// The list of models is needed and is none.
    #[error("{url} does not list its models ({why}); name them with --model and --adapters")]
    NoModels {
        /// What was asked.
        url: String,
        /// Status or what was wrong with the answer.
        why: String,
    },
    /// `@models` stands for none.
    #[error(
        "{url} lists no adapters; name them with --adapters, or ask the base with --adapters base"
    )]
    NoAdapters {
        /// What was asked.
        url: String,
    },
    /// There is no default to take.
    #[error("{url} lists no base model; name one with --model")]
    NoBase {
        /// What was asked.
        url: String,
    },
    /// A request before the measured ones was not answered.
    #[error("a first request, for {whom}, was not answered: {why}")]
    Warmup {
        /// Adapter or model.
        whom: String,
        /// Kind and message.
        why: String,
    },
    /// A file of ours is none.
    #[error("{}: {what}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file that the system does not give.
    #[error("{} cannot be read", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A plan that contradicts itself.
    #[error("{0}")]
    Plan(String),
    /// The system refused what a client needs.
    #[error("the system refused what a client needs")]
    Client(#[source] reqwest::Error),
    /// No thread, or a task that ended.
    #[error("the system refused what a client needs")]
    System(#[source] io::Error),
}
