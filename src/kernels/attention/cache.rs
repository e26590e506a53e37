//! How keys and values lie in the cache.
//!
//! A page has sixteen positions of each head. Keys lie dimension after dimension, `[dim, 16]`, and values position after position,
//! `[16, padded dim]`: as floats, or as 8-bit codes in words of four, followed by the scales of their groups, `[groups, 16]`. A
//! group is 32 dimensions of a position, the last one what is left, and a number is its code times its group's scale.

use candle_core::DType;

use super::Heads;
use crate::kernels::{
    dense::{Dense, F16, F32},
    simd::{LANES, Simd},
};

/// Positions of one page.
pub const PAGE: usize = LANES;
/// Dimensions that share a scale.
pub(super) const GROUP: usize = 32;
/// Codes of a word.
pub(super) const IN_WORD: usize = 4;

/// The type in which keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// 32-bit floats.
    F32,
    /// Half precision.
    F16,
    /// Codes from -127 to 127, and a 32-bit scale for each 32 dimensions of a position.
    Int8,
}

impl KvType {
    /// The type of a cache's elements: of numbers, or of words of codes and scales.
    pub fn elements(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Int8 => DType::U32,
        }
    }

    /// Elements of a head in a page, before its scales, where each position has `numbers` numbers.
    pub(super) fn unscaled(self, numbers: usize) -> usize {
        match self {
            Self::F32 | Self::F16 => numbers * PAGE,
            Self::Int8 => numbers.div_ceil(IN_WORD) * PAGE,
        }
    }
}

impl Heads {
    /// Width of a head's values in the cache: whole vectors.
    pub fn padded_dim(self) -> usize {
        self.dim.next_multiple_of(LANES)
    }

    /// Elements of a head's scales in a page.
    fn scales(self, kind: KvType) -> usize {
        match kind {
            KvType::F32 | KvType::F16 => 0,
            KvType::Int8 => self.dim.div_ceil(GROUP) * PAGE,
        }
    }

    /// Elements of a head's keys in a page.
    pub(super) fn key_head(self, kind: KvType) -> usize {
        kind.unscaled(self.dim) + self.scales(kind)
    }

    /// Elements of a head's values in a page.
    pub(super) fn value_head(self, kind: KvType) -> usize {
        kind.unscaled(self.padded_dim()) + self.scales(kind)
    }

    /// `[pages, key heads, dim, 16]` of floats; of words as many rows of 16 as codes and scales take.
    pub fn key_shape(self, kind: KvType, pages: usize) -> (usize, usize, usize, usize) {
        (pages, self.keys, self.key_head(kind) / PAGE, PAGE)
    }

    /// `[pages, key heads, 16, padded dim]` of floats; of words as many columns of 16 as codes and scales take.
    pub fn value_shape(self, kind: KvType, pages: usize) -> (usize, usize, usize, usize) {
        (pages, self.keys, PAGE, self.value_head(kind) / PAGE)
    }

    /// Bytes of a page of keys and values.
    pub fn page_bytes(self, kind: KvType) -> usize {
        let elements = self.keys * (self.key_head(kind) + self.value_head(kind));
        elements * kind.elements().size_in_bytes()
    }
}

/// Numbers as a cache keeps them.
pub(super) trait Kept: Dense {
    /// What they are.
    const KIND: KvType;
    /// Whether they are codes that have scales.
    const SCALED: bool = matches!(Self::KIND, KvType::Int8);
}

impl Kept for F32 {
    const KIND: KvType = KvType::F32;
}

impl Kept for F16 {
    const KIND: KvType = KvType::F16;
}

/// 8-bit codes.
pub(super) struct Codes;

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl Dense for Codes {
    const WIDTH: usize = 1;
    #[inline(always)]
    fn widen<S: Simd>(simd: S, bytes: &[u8]) -> S::F {
        let bytes: &[u8; LANES] = bytes.try_into().expect("callers cut vectors");
        simd.to_float(simd.load_signed_bytes(bytes))
    }
}

impl Kept for Codes {
    const KIND: KvType = KvType::Int8;
}

/// The scales of group `group` of a head's keys or values in a page, which begin after `unscaled` bytes.
#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
pub(super) fn scales<S: Simd>(simd: S, head: &[u8], unscaled: usize, group: usize) -> S::F {
    F32::widen(simd, &head[unscaled + group * PAGE * F32::WIDTH..][..PAGE * F32::WIDTH])
}
