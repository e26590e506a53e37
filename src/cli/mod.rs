//! What was typed, turned into one call. The only part of chorus that prints.

mod accounts;
mod adapter;
mod audit;
mod base;
mod bench;
mod command;
mod device;
mod error;
mod plan;
mod progress;
mod pull;
mod reload;
mod remote;
mod render;
mod serve;
mod signals;
mod store;
mod tenant;
mod transfer;
mod usage;

pub use command::run;
use error::CliError;
use tokio::runtime::{Builder, Runtime};

/// For commands that do one thing after the other.
fn runtime() -> Result<Runtime, CliError> {
    Builder::new_current_thread().enable_all().build().map_err(CliError::System)
}
