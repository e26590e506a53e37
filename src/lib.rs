//! wip
pub mod kernels;
