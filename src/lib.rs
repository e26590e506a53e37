//! wip
pub mod kernels;
pub mod lora;
pub mod model;
