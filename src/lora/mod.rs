//! The maths and the shape of an adapter: sites, reading PEFT files, and what the kernels are given.

mod adapter;
mod batch;
mod digest;
mod extras;
mod lease;
mod limits;
mod manifest;
mod matrices;
pub mod peft;
mod refusal;
mod site;

#[cfg(test)]
pub(crate) use adapter::ZeroBase;
pub use adapter::{Adapter, Base, BuildError, Inputs, NotMixable};
pub use batch::LoraBatch;
pub use digest::{Digest, NotADigest};
pub use extras::{Defaults, Extras, Said, SmokeTest, ranges};
pub use lease::Lease;
pub use limits::Limits;
pub use manifest::{Delta, Dtype, Manifest, View};
pub use matrices::{Matrices, Memory};
pub use refusal::Refusal;
pub use site::{Module, Norm, Proj, Site, Sites};
