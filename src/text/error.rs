//! What can go wrong with text: while a model's files are read, and while a request is served.

use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;

/// Why the text side of a model could not be read. It names server paths: for the operator only.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The operating system refused the file.
    #[error("cannot read {path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file is larger than any real one of its kind.
    #[error("{path} has more than {max} bytes, too many for a file of its kind", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Most bytes accepted.
        max: u64,
    },
    /// Not a GGUF file, or a damaged one.
    #[error(
        "{path} is not a readable GGUF file: {problem}",
        path = path.display(),
        problem = first_line(source)
    )]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What the reader found.
        source: candle_core::Error,
    },
    /// A metadata entry is missing or is not what it must be.
    #[error("{path}: metadata {key}: {problem}", path = path.display())]
    Metadata {
        /// The GGUF file.
        path: PathBuf,
        /// The entry.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A kind of tokenizer that is not implemented.
    #[error("{path}: unsupported {what} {found:?}; supported: {supported}", path = path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Which part of the tokenizer.
        what: &'static str,
        /// What the file asks for.
        found: String,
        /// What it may ask for.
        supported: String,
    },
    /// A model directory without `tokenizer.json`.
    #[error(
        "{path} has no tokenizer.json; save one there with the model's tokenizer \
         (transformers: AutoTokenizer.from_pretrained(..).save_pretrained(..))",
        path = dir.display()
    )]
    NoTokenizer {
        /// The model directory.
        dir: PathBuf,
    },
    /// A JSON file that cannot be understood.
    #[error("{path}: {source}", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where parsing stopped.
        source: serde_json::Error,
    },
    /// The tokenizer's parts contradict each other.
    #[error("{path}: the tokenizer is inconsistent: {problem}", path = path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The chat template does not compile.
    #[error("{path}: the chat template does not compile: {source}", path = path.display())]
    Template {
        /// The file the template is in.
        path: PathBuf,
        /// Where it stopped compiling.
        source: minijinja::Error,
    },
    /// A token named as special that the vocabulary does not have.
    #[error("{path}: {key} names token {id}, the vocabulary has {vocab} tokens", path = path.display())]
    NoSuchToken {
        /// The file that names it.
        path: PathBuf,
        /// The entry that names it.
        key: &'static str,
        /// The token id named.
        id: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
}

/// An error of candle without the backtrace that may follow it.
fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Why a request's text could not be encoded or its messages not rendered. It names no path of the
/// server: safe to send to the client.
#[derive(Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Error {
    /// The text has more bytes than are ever encoded in one piece.
    #[error("the text has {bytes} bytes, at most {max} are accepted")]
    TextTooLong {
        /// Bytes given.
        bytes: usize,
        /// Most bytes accepted.
        max: usize,
    },
    /// The text has a longer run of whitespace than can be split exactly.
    #[error("the text has {characters} whitespace characters in a row, at most {max} are accepted")]
    TooMuchWhitespace {
        /// Length of the run.
        characters: usize,
        /// Longest run accepted.
        max: usize,
    },
    /// The tokenizer refused the text.
    #[error("the text cannot be tokenized: {0}")]
    Untokenizable(String),
    /// Messages were given to a model without a chat template.
    #[error("this model has no chat template: send a prompt to completions instead")]
    NoTemplate,
    /// The chat template itself refused the messages (`raise_exception`).
    #[error("the chat template refused the messages: {0}")]
    Refused(String),
    /// The chat template cannot render these messages.
    #[error("the chat template cannot render the messages: {0}")]
    Unrenderable(String),
    /// Rendering the messages took more work than is allowed.
    #[error(
        "rendering the messages takes more work than is allowed; send fewer or shorter messages"
    )]
    TooMuchWork,
    /// The rendered messages are longer than is allowed.
    #[error("the rendered messages have more than {max} bytes")]
    RenderedTooLong {
        /// Most bytes accepted.
        max: usize,
    },
    /// There is no final message to continue, or the chat template leaves it out.
    #[error("the final message cannot be continued: the chat template does not render it as it is")]
    NotContinuable,
}
