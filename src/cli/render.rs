//! `chorus render`, which a server starts for itself: one chat through a template that somebody has brought.

use std::io::{self, Read as _, Write as _};

use rustix::process::{Resource, Rlimit, nice, setrlimit};

use super::error::CliError;
use crate::text::Rendering;

/// Seconds of a processor.
const SECONDS: u64 = 1;
/// Bytes of address space: what the program is mapped into, and a hundred prompts.
const MEMORY: u64 = 1 << 30;
/// How far it stands back behind those who answer.
const NICE: i32 = 10;

/// Reads a [`Rendering`] from standard input, and writes what comes of it: `{"Ok": TEXT}` or `{"Err": WHY}`.
pub(crate) fn run() -> Result<(), CliError> {
    confine().map_err(CliError::System)?;
    let mut bytes = Vec::new();
    io::stdin().read_to_end(&mut bytes).map_err(CliError::System)?;
    let rendering: Rendering = serde_json::from_slice(&bytes)
        .map_err(|error| CliError::System(io::Error::other(error)))?;
    let rendered = serde_json::to_vec(&rendering.run())
        .map_err(|error| CliError::System(io::Error::other(error)))?;
    io::stdout().write_all(&rendered).map_err(CliError::Output)
}

/// Before a byte is read that somebody else has written.
fn confine() -> io::Result<()> {
    for (what, most) in [(Resource::Cpu, SECONDS), (Resource::As, MEMORY), (Resource::Core, 0)] {
        setrlimit(what, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    nice(NICE)?;
    Ok(())
}
