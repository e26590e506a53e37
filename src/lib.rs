//! wip
pub mod adapter;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod engine;
pub mod http;
pub mod kernels;
pub mod lora;
pub mod model;
pub mod telemetry;
pub mod tenant;
pub mod text;
