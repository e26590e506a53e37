//! One binary for all tests that see chorus from outside.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod accounts;
mod architecture;
mod bench;
mod cache;
mod cli;
mod embeddings;
mod forms;
mod invariance;
mod mixes;
mod operator;
mod parity;
mod reference;
mod rope;
mod routes;
mod secure;
mod serving;
mod tenants;
mod tokenizer;
mod uploads;
mod weights;
mod world;
