//! Numbers as files have them, sixteen at a time.

use super::simd::{LANES, Simd};

/// An element type.
pub(super) trait Dense {
    /// Bytes of one.
    const WIDTH: usize;
    /// Sixteen of them.
    fn widen<S: Simd>(simd: S, bytes: &[u8]) -> S::F;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

/// Elements of a tensor, whose bytes are what [`Dense`] reads.
pub(super) trait Number: Copy + Send + Sync {}

impl Number for f32 {}
impl Number for half::f16 {}
impl Number for u32 {}

/// Numbers as their bytes.
pub(super) fn bytes_of<T: Number>(numbers: &[T]) -> &[u8] {
    // SAFETY: all types of number are plain bits without padding, and any bytes may be read.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
}

/// Sixteen little-endian 16-bit words.
#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
pub(super) fn words16(bytes: &[u8]) -> &[u16; LANES] {
    let bytes: &[u8; 2 * LANES] = bytes.try_into().expect("callers cut vectors");
    // SAFETY: 32 readable bytes; what callers cut lies at an even offset of a cache line; x86-64 and aarch64 are little-endian.
    unsafe { &*bytes.as_ptr().cast() }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl Dense for F32 {
    const WIDTH: usize = 4;
    #[inline(always)]
    fn widen<S: Simd>(simd: S, bytes: &[u8]) -> S::F {
        let bytes: &[u8; 4 * LANES] = bytes.try_into().expect("callers cut vectors");
        // SAFETY: 64 readable bytes at a multiple of four; any bits are an `f32`.
        simd.load(unsafe { &*bytes.as_ptr().cast() })
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl Dense for F16 {
    const WIDTH: usize = 2;
    #[inline(always)]
    fn widen<S: Simd>(simd: S, bytes: &[u8]) -> S::F {
        simd.load_f16(words16(bytes))
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl Dense for Bf16 {
    const WIDTH: usize = 2;
    #[inline(always)]
    fn widen<S: Simd>(simd: S, bytes: &[u8]) -> S::F {
        simd.load_bf16(words16(bytes))
    }
}
