//! wip
pub mod engine;
pub mod kernels;
pub mod lora;
pub mod model;
