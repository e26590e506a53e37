//! Why a command ended without doing its work, in one line.

use std::{error::Error, io, net::SocketAddr, path::PathBuf};

use super::remote::RemoteError;
use crate::{
    adapter::ScanError,
    bench::BenchError,
    catalog::PullError,
    config::{ConfigError, Kernels},
    http, model,
    store::{NotCopied, OpenError, StoreError},
    telemetry::{BadFilter, traces::BadEndpoint},
    text,
};

/// Why a command failed. Each message says what, where and, if it is not plain, what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Filter(#[from] BadFilter),
    #[error(transparent)]
    Bench(#[from] BenchError),
    #[error("none of {sent} requests was answered: {why}")]
    NothingAnswered { sent: u64, why: String },
    #[error("{} cannot be written", path.display())]
    Unwritable { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Pull(#[from] PullError),
    #[error("the catalog has no base model `{name}`; it has {known}")]
    NotInCatalog { name: String, known: String },
    #[error(
        "base model `{model}` is neither a file or directory nor a name of the catalog ({known})"
    )]
    NoBase { model: String, known: String },
    #[error("base model {} cannot be read", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("base model {} is neither a regular file nor a directory", path.display())]
    NotAFile { path: PathBuf },
    #[error("base model: {0}")]
    Text(#[from] text::LoadError),
    #[error("base model: {0}")]
    Model(#[from] model::LoadError),
    #[error(
        "base model {}: its tokenizer has {tokenizer} tokens and its network only {network}; they do not belong together, use the tokenizer that the model was trained with",
        path.display()
    )]
    Vocabulary { path: PathBuf, tokenizer: usize, network: usize },
    #[error(
        "kernels = {asked}: this processor does not have these instructions; choose auto or one of {known}"
    )]
    Kernels { asked: Kernels, known: String },
    #[error("max-context = {asked} is more than the {context} tokens of {base}: ask for less")]
    Context { asked: usize, context: usize, base: String },
    #[error(
        "kv-bytes = {given} is too little: one page of {tokens} tokens takes {page} bytes and a prompt takes many"
    )]
    NoPage { given: u64, tokens: usize, page: u64 },
    #[error("adapters: {0}; choose a folder with --adapters")]
    Adapters(#[from] ScanError),
    #[error("adapters cannot be loaded from {}: --lora-root must name a folder", path.display())]
    LoraRoot { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error(transparent)]
    Store(#[from] OpenError),
    #[error("the adapters in the store cannot be read: {0}")]
    Records(#[from] StoreError),
    #[error("usage cannot be noted in {}: give a folder that can be written with --journals", path.display())]
    Journals { path: PathBuf, source: io::Error },
    #[error("usage cannot be noted, because the store does not say which one it is: {0}")]
    Ledger(StoreError),
    #[error("the store lacks what its records refer to, in {faults} places")]
    StoreLacks { faults: usize },
    #[error(transparent)]
    NotCopied(#[from] NotCopied),
    #[error("both are one store, or one lies in the other: a copy needs a place of its own")]
    CopyOntoItself,
    #[error(transparent)]
    Header(#[from] http::BadHeader),
    #[error("TLS: {0}")]
    Tls(#[from] http::TlsError),
    #[error(transparent)]
    Traces(#[from] BadEndpoint),
    #[error(
        "device-adapter-bytes is memory of a GPU, and the processor computes here: leave it out, or choose a GPU with --device"
    )]
    NoDeviceMemory,
    #[cfg(feature = "cuda")]
    #[error("there is no GPU {ordinal}: this machine has {there}, which are counted from 0")]
    NoGpu { ordinal: usize, there: usize },
    #[cfg(feature = "cuda")]
    #[error(
        "kv-dtype = f32 or int8: on a GPU keys and values are kept in 16 bits; leave it out, or choose --device cpu"
    )]
    DeviceKv,
    #[cfg(feature = "cuda")]
    #[error("the driver does not say what GPUs there are")]
    NoDriver(#[source] candle_core::Error),
    #[cfg(feature = "cuda")]
    #[error(
        "precision is how the processor computes, and a GPU takes 16-bit floats: leave it out, or choose --device cpu"
    )]
    DevicePrecision,
    #[cfg(feature = "cuda")]
    #[error("the GPU cannot serve this base")]
    Device(#[source] candle_core::Error),
    #[error("the engine did not start")]
    Engine(#[from] candle_core::Error),
    #[error("the engine ended by a fault that the log tells; start the server again")]
    EngineEnded,
    #[error(
        "listening on {address} lets everybody who reaches this machine use the server, which has no API keys: listen on 127.0.0.1, set CHORUS_OPERATOR_KEY and make keys, or pass --open if that is meant"
    )]
    Open { address: SocketAddr },
    #[error("cannot listen on {address}; choose another address with {option}")]
    Listen { address: SocketAddr, option: &'static str, source: io::Error },
    #[error("the server stopped")]
    Serve(#[source] io::Error),
    #[error("the system refused what a server needs")]
    System(#[source] io::Error),
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
}

impl CliError {
    /// The message and its causes on one line.
    pub(crate) fn one_line(&self) -> String {
        let mut line = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !line.contains(&text) {
                line = format!("{line}: {text}");
            }
            cause = error.source();
        }
        line.lines().map(str::trim).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_follow_on_the_same_line() {
        let source = io::Error::new(io::ErrorKind::AddrInUse, "Address already\n in use");
        let (address, option) = (([127, 0, 0, 1], 80).into(), "--listen");
        let error = CliError::Listen { address, option, source };
        let line = "cannot listen on 127.0.0.1:80; choose another address with --listen: \
                    Address already; in use";
        assert_eq!(error.one_line(), line);
    }
}
