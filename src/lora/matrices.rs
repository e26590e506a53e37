//! How the low-rank matrices of adapters are kept.

use super::{Dtype, View};
use crate::kernels::numbers::NumberType;

/// How the low-rank matrices of adapters are kept in memory. What an adapter brings besides, such as biases or a head of its
/// own, is kept as it came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Matrices {
    /// In the type they were trained in.
    #[default]
    Native,
    /// As 8-bit codes in groups of 32 that share a scale: about half of what 16-bit types take, and a quarter of `f32`.
    Int8,
}

impl Matrices {
    /// The type of numbers that come from all of `views`: where it is to be theirs and they differ, `f32`.
    pub(super) fn number_type(self, views: &[&View<'_>]) -> NumberType {
        let mut types = views.iter().map(|view| number_type(view.dtype()));
        match self {
            Self::Int8 => NumberType::Int8,
            Self::Native => {
                let first = types.next().unwrap_or(NumberType::F32);
                if types.all(|other| other == first) { first } else { NumberType::F32 }
            }
        }
    }
}

/// Bytes of memory that an adapter takes when it is loaded, by how its matrices are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// With [`Matrices::Native`].
    pub native: usize,
    /// With [`Matrices::Int8`].
    pub int8: usize,
}

impl Memory {
    /// Where they are kept so.
    pub fn of(self, matrices: Matrices) -> usize {
        match matrices {
            Matrices::Native => self.native,
            Matrices::Int8 => self.int8,
        }
    }
}

/// What is kept as it came.
pub(super) fn number_type(dtype: Dtype) -> NumberType {
    match dtype {
        Dtype::F32 => NumberType::F32,
        Dtype::F16 => NumberType::F16,
        Dtype::Bf16 => NumberType::BF16,
    }
}
