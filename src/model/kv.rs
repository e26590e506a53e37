//! The keys and values of every sequence, in pages.

use candle_core::{DType, Device, Result, Tensor};

use super::Spec;
pub use crate::kernels::attention::PAGE;

/// Paged keys and values of all layers. Who owns which page is the scheduler's business.
#[derive(Debug)]
pub struct Kv {
    /// Keys `[pages, key heads, dim, 16]` and values `[pages, key heads, 16, padded dim]` of each layer.
    pub(super) layers: Vec<(Tensor, Tensor)>,
    pages: usize,
}

impl Kv {
    /// Room for `pages` pages of [`PAGE`] positions. Memory is taken as pages are first written.
    pub fn new(spec: &Spec, pages: usize, device: &Device) -> Result<Self> {
        let room = |(pages, heads, a, b): (usize, usize, usize, usize)| {
            let values = [heads, a, b].into_iter().try_fold(pages, usize::checked_mul);
            // Asked for first, because a tensor that does not fit would end the process.
            let fits = values.is_some_and(|n| Vec::<f32>::new().try_reserve_exact(n).is_ok());
            if fits {
                Ok(())
            } else {
                candle_core::bail!("no memory for {pages} pages of keys and values")
            }
        };
        room(spec.heads.key_shape(pages))?;
        room(spec.heads.value_shape(pages))?;
        let layer = |_| {
            let keys = Tensor::zeros(spec.heads.key_shape(pages), DType::F32, device)?;
            let values = Tensor::zeros(spec.heads.value_shape(pages), DType::F32, device)?;
            Ok((keys, values))
        };
        Ok(Self { layers: (0..spec.layers).map(layer).collect::<Result<_>>()?, pages })
    }

    /// How many pages there are.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Bytes of one page over all layers.
    pub fn page_bytes(spec: &Spec) -> usize {
        let heads = spec.heads;
        spec.layers * heads.keys * PAGE * (heads.dim + heads.padded_dim()) * size_of::<f32>()
    }
}
