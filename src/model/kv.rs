//! The keys and values of every sequence, in pages.

use candle_core::{Device, Result, Tensor};
use half::{f16, vec::HalfBitsVecExt};

use super::Spec;
pub use crate::kernels::attention::{KvType, PAGE};
use crate::kernels::memory::keep_freed;

/// Paged keys and values of all layers. Who owns which page is the scheduler's business.
#[derive(Debug)]
pub struct Kv {
    /// Keys and values of each layer, as [`Heads`](crate::kernels::attention::Heads) says.
    pub(super) layers: Vec<(Tensor, Tensor)>,
    pages: usize,
}

impl Kv {
    /// Room for `pages` pages of [`PAGE`] positions. Memory is taken as pages are first written.
    ///
    /// From here on the process keeps freed memory ([`keep_freed`]): a step's tensors come and go.
    pub fn new(spec: &Spec, kind: KvType, pages: usize, device: &Device) -> Result<Self> {
        let heads = spec.heads;
        let shapes = [heads.key_shape(kind, pages), heads.value_shape(kind, pages)];
        // All is asked for first, because a tensor that does not fit would end the process.
        let all = Self::page_bytes(spec, kind).checked_mul(pages);
        if all.is_none_or(|all| Vec::<u8>::new().try_reserve_exact(all).is_err()) {
            candle_core::bail!("no memory for {pages} pages of keys and values")
        }
        let tensor = |shape: (usize, usize, usize, usize)| {
            let numbers = shape.0 * shape.1 * shape.2 * shape.3;
            // Not candle's zeros: those of half precision are written one by one, and take all memory at once.
            match kind {
                KvType::F32 => Tensor::from_vec(vec![0.0_f32; numbers], shape, device),
                KvType::F16 => {
                    let zeros: Vec<f16> = vec![0_u16; numbers].reinterpret_into();
                    Tensor::from_vec(zeros, shape, device)
                }
                KvType::Int8 => Tensor::from_vec(vec![0_u32; numbers], shape, device),
            }
        };
        let layer = |_| Ok((tensor(shapes[0])?, tensor(shapes[1])?));
        let layers = (0..spec.layers).map(layer).collect::<Result<_>>()?;
        // From here on steps are computed. Before, memory that was given back would have been zeroed by hand, and so taken.
        keep_freed();
        Ok(Self { layers, pages })
    }

    /// How many pages there are.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Bytes of one page over all layers.
    pub fn page_bytes(spec: &Spec, kind: KvType) -> usize {
        spec.layers * spec.heads.page_bytes(kind)
    }
}
