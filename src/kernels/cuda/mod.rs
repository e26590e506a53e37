//! The kernels of a step as CUDA C++, and what launches them.
//!
//! What they owe is what the CPU's owe: a row's bits depend on its own numbers, its position and its adapter, never on its
//! neighbours. Between the two sides bits differ, as the orders of their sums do.
//!
//! [`gpu`] is what a step asks of a device, [`launch`] the kernels with their parameters checked, and `driver` the device itself, which
//! `--features cuda` builds. Tests run the same source on the host, thread by thread: each kernel against a plain reference
//! (`tests`), and a whole network on a device made of the host (`stand_in`).

#[cfg(feature = "cuda")]
mod driver;
mod gpu;
mod launch;

#[cfg(test)]
mod host;
#[cfg(test)]
mod stand_in;
#[cfg(test)]
mod tests;

#[cfg(feature = "cuda")]
pub(crate) use driver::Cuda;
pub(crate) use gpu::{Gpu, Half, Plain, Region, Slice, Staging, bring, bytes_of, replay};
pub(crate) use launch::{
    Cache, Kernels, LinearMaps, LoraNumbers, LoraSite, LoraStack, MAX_RANK, MAX_SITES, Norm,
    Normalised, Places, Rows, SPLIT, Shrunk, Slots, Splits, Stacks, TILE, Turns, greedy_parts,
};
#[cfg(test)]
pub(crate) use stand_in::Host;

/// Every kernel, as one source. The kernels have C names that end in their element type, `rms_norm_f16`, `rms_norm_bf16`; those of
/// products in the rows of a tile as well, `linear_q4_k_bf16_64`.
#[cfg(test)]
const SOURCE: &str = concat!(
    include_str!("numbers.cuh"),
    include_str!("norm.cu"),
    include_str!("attention.cu"),
    include_str!("lora.cu"),
    include_str!("bias.cu"),
    include_str!("gate.cu"),
    include_str!("greedy.cu"),
    include_str!("linear.cu"),
);
