//! Reading adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`, as PEFT 0.18 writes and
//! reads them.
//!
//! The files are foreign and may be hostile. Nothing here panics on them, recurses without a bound, or allocates more
//! than a small multiple of the bytes that are really there; patterns are matched in linear time. What is not fully
//! understood is a [`Refusal`](super::Refusal), never a guess.
//!
//! The way of an adapter: `config` gives the meaning of its configuration, `plan` what that selects on this base,
//! `header` the tensors that the weights really hold, and [`read()`] holds the two against each other.

mod config;
mod header;
mod json;
mod pattern;
mod plan;
mod read;
#[cfg(test)]
mod tests;

pub use read::read;

/// The file that says what the tensors mean.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// The file with the tensors.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
