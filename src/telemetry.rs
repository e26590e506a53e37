//! Logs: events of the `tracing` crate, on standard error. And [`traces`], where the operator asks for them.
//!
//! A prompt, an answer or a key is never a field of either, at any level.

pub mod traces;

use std::io::{self, IsTerminal as _};

use tracing::{Subscriber, subscriber::set_global_default};
use tracing_subscriber::{EnvFilter, filter::ParseError, fmt::MakeWriter};

use crate::config::{Log, LogFormat};

/// The hub's client reports every attempt as an error; what came of them is in our own message.
/// A filter that names the crate has the last word.
const QUIET: &str = "hf_hub=off";

/// The filter cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error(
    "log = `{filter}`: {source}; write a level (info) or modules with levels (chorus::engine=debug,info)"
)]
pub struct BadFilter {
    filter: String,
    source: ParseError,
}

/// Sends events to standard error from here on. Only the first call of a process has an effect.
pub fn start(log: &Log) -> Result<(), BadFilter> {
    let events = subscriber(log, io::stderr)?;
    // Fails where a subscriber is installed already, as in a test that starts two servers.
    drop(set_global_default(events));
    Ok(())
}

/// What writes events that pass the filter to `writer`, as JSON.
#[cfg(test)]
pub(crate) fn json(
    filter: &str,
    writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static,
) -> Box<dyn Subscriber + Send + Sync> {
    let log = Log { filter: filter.to_owned(), format: LogFormat::Json };
    subscriber(&log, writer).expect("tests know how filters are written")
}

/// What writes events to `writer`.
fn subscriber(
    log: &Log,
    writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static,
) -> Result<Box<dyn Subscriber + Send + Sync>, BadFilter> {
    let filter = EnvFilter::builder()
        .parse(format!("{QUIET},{}", log.filter))
        .map_err(|source| BadFilter { filter: log.filter.clone(), source })?;
    let events = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    Ok(match log.format {
        LogFormat::Pretty => Box::new(events.with_ansi(io::stderr().is_terminal()).finish()),
        LogFormat::Json => Box::new(events.json().flatten_event(true).finish()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_means_nothing_is_named() {
        let log = Log { filter: "chorus=loud".to_owned(), format: LogFormat::Pretty };
        let error = start(&log).unwrap_err().to_string();
        assert!(error.contains("chorus=loud"), "{error}");
    }
}
