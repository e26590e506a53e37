//! The kernels of a step as CUDA C++. Nothing runs them on a device yet: they are compiled for one (`deploy/cuda/check.sh`), and
//! the tests of this module run the same source on the host, thread by thread, against plain references.
//!
//! What they owe is what the CPU's owe: a row's bits depend on its own numbers, its position and its adapter, never on its
//! neighbours. Between the two sides bits differ, as the orders of their sums do.

/// Every kernel, as one source for a run-time compiler with `cuda_fp16.h` and `cuda_bf16.h` in its path. The kernels have C
/// names that end in their element type: `rms_norm_f16`, `rms_norm_bf16`.
const SOURCE: &str = concat!(
    include_str!("numbers.cuh"),
    include_str!("norm.cu"),
    include_str!("attention.cu"),
    include_str!("lora.cu"),
    include_str!("gate.cu"),
    include_str!("greedy.cu"),
);

#[cfg(test)]
mod host;
#[cfg(test)]
mod tests;
