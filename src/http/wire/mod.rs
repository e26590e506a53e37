//! What goes over the wire, as it is written there. None of these types is known outside `http`.

pub(super) mod accounts;
pub(super) mod adapters;
pub(super) mod admin;
pub(super) mod audit;
pub(super) mod chat;
pub(super) mod common;
pub(super) mod completion;
pub(super) mod content;
pub(super) mod embedding;
pub(super) mod error;
pub(super) mod form;
pub(super) mod list;
pub(super) mod lorax;
pub(super) mod messages;
pub(super) mod models;
pub(super) mod object;
pub(super) mod prompt;
pub(super) mod responses;
mod shape;
pub(super) mod tokens;
pub(super) mod tools;
pub(super) mod unsupported;
pub(super) mod usage;
pub(super) mod version;
pub(super) mod vllm;
