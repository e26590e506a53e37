//! Base models by name: where they come from, what their bytes must be, and how they are fetched.
//!
//! The catalog knows files and checksums. It does not know what a model is, and it never trusts a
//! source: what arrives is hashed on its way to the disk and gets its name only when the sha256 is
//! the catalog's.

mod checksum;
mod digests;
mod entry;
mod hub;
mod intake;
mod progress;
mod pull;
mod pypi;

#[cfg(test)]
mod fixture;

pub use checksum::{Checksum, NotAChecksum};
pub use digests::Digests;
pub use entry::{DEFAULT, Entry, Source, entries, find};
pub use progress::Progress;
pub use pull::{HubAccess, PullError, Tried, is_present, pull};
