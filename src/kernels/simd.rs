//! Sixteen `f32` lanes, one meaning on every machine.
//!
//! A kernel is written once against [`Simd`] and run by [`Tier::run`] with the widest instructions the processor has.
//! Every operation has the same rounding on every tier (fused multiply-add included), so a kernel gives the same bits
//! everywhere; what it must not do is let the number of rows decide the order of its own sums.
//!
//! A value of a tier's token type is the proof that the processor has its instructions: the only way to one is [`Tier`].

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::fmt;

/// Lanes of one vector.
pub const LANES: usize = 16;

/// The operations that kernels are written in.
pub trait Simd: Copy {
    /// Sixteen `f32`.
    type F: Copy;
    /// Sixteen 32-bit integers.
    type I: Copy;

    /// How many vectors of accumulators a kernel may keep in registers.
    const ACCUMULATORS: usize;
    /// Rows that share vectors of codes, a power of two.
    const TILE: usize;
    /// Vectors of sums that a kernel may keep for them, at least one for each.
    const SUMS: usize;
    /// How many groups ahead a panel's memory is asked for, none where the processor foresees well enough what will be read.
    const AHEAD: usize;
    /// Registers that one vector takes.
    const REGISTERS: usize;
    /// Whether products of bytes are summed faster in sixteen bits, by [`Self::dot_short`], than by [`Self::dot_bytes`].
    const SHORT_SUMS: bool;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// Sixteen consecutive values.
    fn load(self, x: &[f32; LANES]) -> Self::F;
    /// Sixteen consecutive values in IEEE half precision, widened.
    fn load_f16(self, x: &[u16; LANES]) -> Self::F;
    /// Sixteen consecutive values in bfloat16, widened.
    fn load_bf16(self, x: &[u16; LANES]) -> Self::F;
    /// Writes all lanes.
    fn store(self, v: Self::F, x: &mut [f32; LANES]);
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a + b`
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// The greater of `a` and `b`; `b` where either is not a number.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The lesser of `a` and `b`; `b` where either is not a number.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// The sum of all lanes: lane i with i + 8, then with i + 4, i + 2, i + 1.
    fn sum(self, v: Self::F) -> f32;
    /// The greatest lane.
    fn greatest(self, v: Self::F) -> f32;
    /// `v` where bit i of `keep` is set, else `other`.
    fn select(self, keep: u16, v: Self::F, other: Self::F) -> Self::F;

    /// All lanes `x`.
    fn splat_int(self, x: i32) -> Self::I;
    /// Adds to each lane of `sums` the two products of its signed 16-bit halves in `a` and `b`.
    fn dot(self, sums: Self::I, a: Self::I, b: Self::I) -> Self::I;
    /// Adds to each lane of `sums` the four products of its unsigned bytes in `codes` with its signed bytes in `x`.
    fn dot_bytes(self, sums: Self::I, codes: Self::I, x: Self::I) -> Self::I;
    /// Adds to each 16-bit half of `sums` the two products of its unsigned bytes in `codes` with its signed bytes in `x`. No sum
    /// may leave sixteen bits.
    fn dot_short(self, sums: Self::I, codes: Self::I, x: Self::I) -> Self::I;
    /// Adds to each lane of `sums` both signed 16-bit halves of `short`.
    fn add_halves(self, sums: Self::I, short: Self::I) -> Self::I;
    /// `a + b`
    fn add_int(self, a: Self::I, b: Self::I) -> Self::I;
    /// `-(v << shift)`
    fn negated_shift(self, v: Self::I, shift: u32) -> Self::I;
    /// `v >> shift`, with its sign.
    fn shifted_down(self, v: Self::I, shift: u32) -> Self::I;
    /// Writes each lane's low half, the first of two as the low half of a word.
    fn store_shorts(self, v: Self::I, x: &mut [u32; LANES / 2]);
    /// Writes each lane's low byte.
    fn store_bytes(self, v: Self::I, x: &mut [u8; LANES]);
    /// Sixteen little-endian 32-bit words.
    fn load_words(self, x: &[u8; 4 * LANES]) -> Self::I;
    /// Sixteen bytes, each widened without a sign.
    fn load_bytes(self, x: &[u8; LANES]) -> Self::I;
    /// Sixteen bytes, each widened with its sign.
    fn load_signed_bytes(self, x: &[u8; LANES]) -> Self::I;
    /// `(v >> shift) & mask`, without a sign.
    fn field(self, v: Self::I, shift: u32, mask: u32) -> Self::I;
    /// `a | b << shift`
    fn join(self, a: Self::I, b: Self::I, shift: u32) -> Self::I;
    /// Signed integers to `f32`, to nearest.
    fn to_float(self, v: Self::I) -> Self::F;
    /// `f32` to signed integers, to nearest even.
    fn to_int(self, v: Self::F) -> Self::I;
    /// `v * 2^n`, for results in the normal range.
    fn scale_by_power(self, v: Self::F, n: Self::I) -> Self::F;

    /// `e^v` to about one unit in the last place, for `v` clamped to [-87, 88].
    ///
    /// Cody-Waite reduction by multiples of ln 2, then a polynomial of degree 6 (Cephes `expf`).
    #[expect(clippy::inline_always, reason = "compiled inside the caller's target features")]
    #[inline(always)]
    fn exp(self, v: Self::F) -> Self::F {
        let v = self.max(self.min(v, self.splat(88.0)), self.splat(-87.0));
        let n = self.to_int(self.mul(v, self.splat(std::f32::consts::LOG2_E)));
        let turns = self.to_float(n);
        let r = self.fma(turns, self.splat(-0.693_359_4), v);
        let r = self.fma(turns, self.splat(2.121_944_4e-4), r);
        let mut p = self.splat(1.987_569_1e-4);
        for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = self.fma(p, r, self.splat(c));
        }
        let p = self.fma(p, self.mul(r, r), self.add(r, self.splat(1.0)));
        self.scale_by_power(p, n)
    }
}

/// Asks for bytes that will soon be read.
#[inline]
pub(super) fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 processor has the instruction, and it reads nothing that a program can see.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// A computation written against [`Simd`].
pub trait Kernel {
    /// What it yields.
    type Output;
    /// Does the work. Implementations are `#[inline(always)]`, so that they are compiled once per tier.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// The instructions a kernel is run with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// 512-bit vectors with integer dot products (AVX-512 F, BW, DQ, VL, VNNI).
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    /// 256-bit vectors with fused multiply-add and half conversion (AVX2, FMA, F16C).
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// Plain Rust.
    Portable(Portable),
}

impl Tier {
    /// All tiers that this processor can run, best first.
    pub fn available() -> Vec<Self> {
        let mut tiers = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
                && is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                tiers.push(Self::Avx512(Avx512(())));
            }
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                tiers.push(Self::Avx2(Avx2(())));
            }
        }
        tiers.push(Self::Portable(Portable(())));
        tiers
    }

    /// The best tier of this processor.
    pub fn best() -> Self {
        Self::available()[0]
    }

    /// Rows that a kernel computes together with one vector of codes.
    pub(super) fn tile_rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => Avx512::TILE,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => Avx2::TILE,
            Self::Portable(_) => Portable::TILE,
        }
    }

    /// Runs `kernel` with this tier's instructions.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the token exists only where the features were detected.
            Self::Avx512(simd) => unsafe { avx512(simd, kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the token exists only where the features were detected.
            Self::Avx2(simd) => unsafe { avx2(simd, kernel) },
            Self::Portable(simd) => kernel.run(simd),
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            Self::Portable(_) => "portable",
        })
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn avx512<K: Kernel>(simd: Avx512, kernel: K) -> K::Output {
    kernel.run(simd)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
    // LLVM aligns a frame for what it holds before registers are given out, not for vectors that it then puts aside. Unaligned,
    // half of those lie across two cache lines, and one or the other across two pages.
    std::hint::black_box(Line([0; 64]));
    kernel.run(simd)
}

/// A cache line.
#[cfg(target_arch = "x86_64")]
#[repr(align(64))]
#[expect(dead_code, reason = "it takes up its place")]
struct Line([u8; 64]);

/// Proof of AVX-512 F, BW, DQ, VL and VNNI, and of what [`Avx2`] proves.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512(());

/// Proof of AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2(());

/// Needs no proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Portable(());

/// Wraps intrinsics of a tier whose token is at hand.
#[cfg(target_arch = "x86_64")]
macro_rules! with_features {
    ($e:expr) => {
        // SAFETY: `self` is the proof that the processor has the instruction; references are valid for the width read.
        unsafe { $e }
    };
}
#[cfg(target_arch = "x86_64")]
use with_features;

#[cfg(test)]
mod tests {
    use super::*;

    /// Products of the same four bytes in each lane, summed in sixteen bits first, and at once.
    struct Products([u8; 4], [i8; 4]);

    #[expect(clippy::inline_always, reason = "compiled once per tier")]
    impl Kernel for Products {
        type Output = [[f32; LANES]; 2];

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let codes = simd.splat_int(i32::from_le_bytes(self.0));
            let x = simd.splat_int(i32::from_le_bytes(self.1.map(i8::cast_unsigned)));
            let (none, some) = (simd.splat_int(0), simd.splat_int(-7));
            let short = simd.add_halves(some, simd.dot_short(none, codes, x));
            let mut out = [[0.0; LANES]; 2];
            simd.store(simd.to_float(short), &mut out[0]);
            simd.store(simd.to_float(simd.dot_bytes(some, codes, x)), &mut out[1]);
            out
        }
    }

    #[test]
    fn products_of_bytes_are_the_same_in_sixteen_bits() {
        let codes = [[0, 15, 1, 15], [63; 4], [31, 0, 63, 2]];
        for (codes, x) in codes
            .into_iter()
            .flat_map(|c| [[127; 4], [-127; 4], [127, -127, -1, 5]].map(|x| (c, x)))
        {
            let want =
                codes.iter().zip(&x).map(|(c, x)| i32::from(*c) * i32::from(*x)).sum::<i32>() - 7;
            for tier in Tier::available() {
                assert_eq!(
                    tier.run(Products(codes, x)),
                    [[want as f32; LANES]; 2],
                    "{tier}: {codes:?} by {x:?}"
                );
            }
        }
    }
}
