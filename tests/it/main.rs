//! One binary for all tests that see chorus from outside.

#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests")]

mod reference;
mod world;
