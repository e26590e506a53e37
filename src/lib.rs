//! wip
pub mod adapter;
pub mod engine;
pub mod kernels;
pub mod lora;
pub mod model;
pub mod tenant;
