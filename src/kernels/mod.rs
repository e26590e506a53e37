//! The hot places of a step, as custom ops on candle tensors.
//!
//! Each kernel is written once against [`simd::Simd`] and runs on whatever the processor has; beside each stands a plain
//! reference and a test that both agree. What a kernel owes to batch invariance: for each output element the order of
//! its sum and the blocking depend on shapes and the adapter only, never on row count, chunk, threads or neighbours.
//!
//! Shapes are row-major. A *row* is one token of a step.

#![expect(unsafe_code, reason = "SIMD and threads; each block has its proof")]

pub mod attention;
#[cfg(any(test, feature = "cuda"))]
pub(crate) mod cuda;
mod dense;
pub mod dora;
pub mod elementwise;
pub mod linear;
pub mod lora;
pub mod memory;
pub mod numbers;
pub mod panels;
pub mod pool;
mod quantize;
pub mod simd;

use candle_core::{CpuStorage, Layout, Result};

/// The contiguous `f32` values behind a tensor.
fn slice_of<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("kernels take contiguous rows, not {layout:?}"),
    }
}
