//! How large an adapter may be.

/// What an adapter may ask for before it is refused for its size alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest rank of any delta.
    pub max_rank: usize,
    /// Largest `adapter_model.safetensors`, in bytes.
    pub max_bytes: u64,
}

impl Default for Limits {
    /// Adapters above rank 256 are rare. 1 GiB holds the retrained embedding of an 8 B model (128,256 x 4,096 x 2
    /// bytes) and every ordinary adapter.
    fn default() -> Self {
        Self { max_rank: 512, max_bytes: 1 << 30 }
    }
}
