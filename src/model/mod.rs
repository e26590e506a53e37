//! The base: a frozen network on candle tensors, paged keys and values, and the rows of each adapter through it.

mod gguf;
#[cfg(any(test, feature = "cuda"))]
pub(crate) mod gpu;
mod hugging_face;
mod kv;
mod llama;
mod load;
mod mapped;
mod rope;
mod spec;

pub use kv::{Kv, KvType, PAGE};
use llama::{Layer, Weights};
pub use llama::{Llama, Outputs, Step};
pub use load::LoadError;
pub use rope::{Horizon, Rope, Scaling, Yarn};
pub use spec::Spec;

pub use crate::kernels::attention::SequenceRows;
