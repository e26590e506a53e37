//! Sixteen `f32` lanes, one meaning on every machine.
//!
//! A kernel is written once against [`Simd`] and run by [`Tier::run`] with the widest instructions the processor has.
//! Every operation has the same rounding on every tier (fused multiply-add included), so a kernel gives the same bits
//! everywhere; what it must not do is let the number of rows decide the order of its own sums.
//!
//! A value of a tier's token type is the proof that the processor has its instructions: the only way to one is [`Tier`].

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256, __m256i, __m512, __m512i, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_loadl_epi64,
    _mm_loadu_si128, _mm_max_ps, _mm_max_ss, _mm_movehl_ps, _mm_shuffle_ps, _mm256_add_epi32,
    _mm256_add_ps, _mm256_and_si256, _mm256_blendv_ps, _mm256_castps_si256, _mm256_castps256_ps128,
    _mm256_castsi256_ps, _mm256_cmpeq_epi32, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32,
    _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_cvtps_epi32, _mm256_div_ps,
    _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16,
    _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps, _mm256_or_si256, _mm256_packs_epi32,
    _mm256_permute4x64_epi64, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi32,
    _mm256_setzero_si256, _mm256_slli_epi32, _mm256_sllv_epi32, _mm256_srai_epi32,
    _mm256_srlv_epi32, _mm256_storeu_ps, _mm256_storeu_si256, _mm256_sub_epi32, _mm512_add_epi32,
    _mm512_add_ps, _mm512_and_si512, _mm512_castps_si512, _mm512_castps512_ps256,
    _mm512_castsi512_ps, _mm512_cvtepi32_epi16, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32,
    _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_cvtps_epi32, _mm512_div_ps,
    _mm512_extractf32x8_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mask_blend_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_or_si512,
    _mm512_reduce_max_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_si512,
    _mm512_slli_epi32, _mm512_sllv_epi32, _mm512_srlv_epi32, _mm512_storeu_ps, _mm512_sub_epi32,
};
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
    /// Vectors of sums that a kernel may keep for each of those rows: 1 or 2.
    const SUMS: usize;

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
    /// `a + b`
    fn add_int(self, a: Self::I, b: Self::I) -> Self::I;
    /// `-(v << shift)`
    fn negated_shift(self, v: Self::I, shift: u32) -> Self::I;
    /// Writes each lane's low half, the first of two as the low half of a word.
    fn store_shorts(self, v: Self::I, x: &mut [u32; LANES / 2]);
    /// Sixteen little-endian 32-bit words.
    fn load_words(self, x: &[u8; 4 * LANES]) -> Self::I;
    /// Sixteen bytes, each widened without a sign.
    fn load_bytes(self, x: &[u8; LANES]) -> Self::I;
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
    kernel.run(simd)
}

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
#[expect(clippy::inline_always, reason = "must be compiled inside the caller's target features")]
impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;

    const ACCUMULATORS: usize = 24;
    const TILE: usize = 8;
    const SUMS: usize = 2;

    #[inline(always)]
    fn splat_int(self, x: i32) -> __m512i {
        with_features!(_mm512_set1_epi32(x))
    }
    #[inline(always)]
    fn dot(self, sums: __m512i, a: __m512i, b: __m512i) -> __m512i {
        with_features!(dpwssd(sums, a, b))
    }
    #[inline(always)]
    fn add_int(self, a: __m512i, b: __m512i) -> __m512i {
        with_features!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn negated_shift(self, v: __m512i, shift: u32) -> __m512i {
        with_features!({
            let shifted = _mm512_sllv_epi32(v, _mm512_set1_epi32(shift.cast_signed()));
            _mm512_sub_epi32(_mm512_setzero_si512(), shifted)
        })
    }
    #[inline(always)]
    fn store_shorts(self, v: __m512i, x: &mut [u32; LANES / 2]) {
        with_features!(_mm256_storeu_si256(x.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(v)));
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        with_features!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> __m512 {
        with_features!(_mm512_loadu_ps(x.as_ptr()))
    }
    #[inline(always)]
    fn load_f16(self, x: &[u16; LANES]) -> __m512 {
        with_features!(_mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> __m512 {
        with_features!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(
            _mm256_loadu_si256(x.as_ptr().cast())
        ))))
    }
    #[inline(always)]
    fn store(self, v: __m512, x: &mut [f32; LANES]) {
        with_features!(_mm512_storeu_ps(x.as_mut_ptr(), v));
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        with_features!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        with_features!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        with_features!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        with_features!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        with_features!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        with_features!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        with_features!({
            let low = _mm512_castps512_ps256(v);
            let high = _mm512_extractf32x8_ps::<1>(v);
            sum256(low, high)
        })
    }
    #[inline(always)]
    fn greatest(self, v: __m512) -> f32 {
        with_features!(_mm512_reduce_max_ps(v))
    }
    #[inline(always)]
    fn select(self, keep: u16, v: __m512, other: __m512) -> __m512 {
        with_features!(_mm512_mask_blend_ps(keep, other, v))
    }
    #[inline(always)]
    fn load_words(self, x: &[u8; 64]) -> __m512i {
        with_features!(_mm512_loadu_si512(x.as_ptr().cast()))
    }
    #[inline(always)]
    fn load_bytes(self, x: &[u8; LANES]) -> __m512i {
        with_features!(_mm512_cvtepu8_epi32(_mm_loadu_si128(x.as_ptr().cast())))
    }
    #[inline(always)]
    fn field(self, v: __m512i, shift: u32, mask: u32) -> __m512i {
        with_features!(_mm512_and_si512(
            _mm512_srlv_epi32(v, _mm512_set1_epi32(shift.cast_signed())),
            _mm512_set1_epi32(mask.cast_signed())
        ))
    }
    #[inline(always)]
    fn join(self, a: __m512i, b: __m512i, shift: u32) -> __m512i {
        with_features!(_mm512_or_si512(
            a,
            _mm512_sllv_epi32(b, _mm512_set1_epi32(shift.cast_signed()))
        ))
    }
    #[inline(always)]
    fn to_float(self, v: __m512i) -> __m512 {
        with_features!(_mm512_cvtepi32_ps(v))
    }
    #[inline(always)]
    fn to_int(self, v: __m512) -> __m512i {
        with_features!(_mm512_cvtps_epi32(v))
    }
    #[inline(always)]
    fn scale_by_power(self, v: __m512, n: __m512i) -> __m512 {
        with_features!(_mm512_castsi512_ps(_mm512_add_epi32(
            _mm512_castps_si512(v),
            _mm512_slli_epi32::<23>(n)
        )))
    }
}

/// The intrinsic of this name in a chain is taken apart by LLVM (22 at least) into a product and a sum, which takes twice the
/// instructions to save a little latency that nothing here waits for.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dpwssd(mut sums: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: one instruction on registers, which this function's callers have proved.
    unsafe {
        std::arch::asm!(
            "vpdpwssd {sums}, {a}, {b}",
            sums = inout(zmm_reg) sums,
            a = in(zmm_reg) a,
            b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// The fixed tree of [`Simd::sum`], from its second level on.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn sum256(low: __m256, high: __m256) -> f32 {
    let v = _mm256_add_ps(low, high);
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
}

/// Two halves of eight lanes.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub struct Halves<T>(T, T);

#[cfg(target_arch = "x86_64")]
#[expect(clippy::inline_always, reason = "must be compiled inside the caller's target features")]
impl Simd for Avx2 {
    type F = Halves<__m256>;
    type I = Halves<__m256i>;

    const ACCUMULATORS: usize = 6;
    const TILE: usize = 4;
    const SUMS: usize = 1;

    #[inline(always)]
    fn splat_int(self, x: i32) -> Self::I {
        with_features!(Halves(_mm256_set1_epi32(x), _mm256_set1_epi32(x)))
    }
    #[inline(always)]
    fn dot(self, sums: Self::I, a: Self::I, b: Self::I) -> Self::I {
        with_features!(Halves(
            _mm256_add_epi32(sums.0, _mm256_madd_epi16(a.0, b.0)),
            _mm256_add_epi32(sums.1, _mm256_madd_epi16(a.1, b.1))
        ))
    }
    #[inline(always)]
    fn add_int(self, a: Self::I, b: Self::I) -> Self::I {
        with_features!(Halves(_mm256_add_epi32(a.0, b.0), _mm256_add_epi32(a.1, b.1)))
    }
    #[inline(always)]
    fn negated_shift(self, v: Self::I, shift: u32) -> Self::I {
        with_features!({
            let shift = _mm256_set1_epi32(shift.cast_signed());
            let negated = |v| _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_sllv_epi32(v, shift));
            Halves(negated(v.0), negated(v.1))
        })
    }
    #[inline(always)]
    fn store_shorts(self, v: Self::I, x: &mut [u32; LANES / 2]) {
        with_features!({
            // Packs within 128 bits, and saturates where the trait cuts: wide lanes are cut first.
            let low = |v| _mm256_srai_epi32::<16>(_mm256_slli_epi32::<16>(v));
            let packed = _mm256_packs_epi32(low(v.0), low(v.1));
            let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
            _mm256_storeu_si256(x.as_mut_ptr().cast(), ordered);
        });
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        with_features!(Halves(_mm256_set1_ps(x), _mm256_set1_ps(x)))
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        with_features!(Halves(_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x[8..].as_ptr())))
    }
    #[inline(always)]
    fn load_f16(self, x: &[u16; LANES]) -> Self::F {
        with_features!(Halves(
            _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(x[8..].as_ptr().cast()))
        ))
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> Self::F {
        with_features!({
            let widen = |half: &[u16]| {
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(
                    _mm_loadu_si128(half.as_ptr().cast()),
                )))
            };
            Halves(widen(&x[..8]), widen(&x[8..]))
        })
    }
    #[inline(always)]
    fn store(self, v: Self::F, x: &mut [f32; LANES]) {
        with_features!({
            _mm256_storeu_ps(x.as_mut_ptr(), v.0);
            _mm256_storeu_ps(x[8..].as_mut_ptr(), v.1);
        });
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        with_features!(Halves(_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)))
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        with_features!(Halves(_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        with_features!(Halves(_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        with_features!(Halves(_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        with_features!(Halves(_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        with_features!(Halves(_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn sum(self, v: Self::F) -> f32 {
        with_features!(sum256(v.0, v.1))
    }
    #[inline(always)]
    fn greatest(self, v: Self::F) -> f32 {
        with_features!({
            let v = _mm256_max_ps(v.0, v.1);
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps::<1>(v, v)))
        })
    }
    #[inline(always)]
    fn select(self, keep: u16, v: Self::F, other: Self::F) -> Self::F {
        with_features!({
            let bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            let mask = |bits: u16| {
                let set = _mm256_and_si256(_mm256_set1_epi32(i32::from(bits)), bit);
                _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, bit))
            };
            Halves(
                _mm256_blendv_ps(other.0, v.0, mask(keep & 0xff)),
                _mm256_blendv_ps(other.1, v.1, mask(keep >> 8)),
            )
        })
    }
    #[inline(always)]
    fn load_words(self, x: &[u8; 64]) -> Self::I {
        with_features!(Halves(
            _mm256_loadu_si256(x.as_ptr().cast()),
            _mm256_loadu_si256(x[32..].as_ptr().cast())
        ))
    }
    #[inline(always)]
    fn load_bytes(self, x: &[u8; LANES]) -> Self::I {
        with_features!(Halves(
            _mm256_cvtepu8_epi32(_mm_loadl_epi64(x.as_ptr().cast())),
            _mm256_cvtepu8_epi32(_mm_loadl_epi64(x[8..].as_ptr().cast()))
        ))
    }
    #[inline(always)]
    fn field(self, v: Self::I, shift: u32, mask: u32) -> Self::I {
        with_features!({
            let shift = _mm256_set1_epi32(shift.cast_signed());
            let mask = _mm256_set1_epi32(mask.cast_signed());
            Halves(
                _mm256_and_si256(_mm256_srlv_epi32(v.0, shift), mask),
                _mm256_and_si256(_mm256_srlv_epi32(v.1, shift), mask),
            )
        })
    }
    #[inline(always)]
    fn join(self, a: Self::I, b: Self::I, shift: u32) -> Self::I {
        with_features!({
            let shift = _mm256_set1_epi32(shift.cast_signed());
            Halves(
                _mm256_or_si256(a.0, _mm256_sllv_epi32(b.0, shift)),
                _mm256_or_si256(a.1, _mm256_sllv_epi32(b.1, shift)),
            )
        })
    }
    #[inline(always)]
    fn to_float(self, v: Self::I) -> Self::F {
        with_features!(Halves(_mm256_cvtepi32_ps(v.0), _mm256_cvtepi32_ps(v.1)))
    }
    #[inline(always)]
    fn to_int(self, v: Self::F) -> Self::I {
        with_features!(Halves(_mm256_cvtps_epi32(v.0), _mm256_cvtps_epi32(v.1)))
    }
    #[inline(always)]
    fn scale_by_power(self, v: Self::F, n: Self::I) -> Self::F {
        with_features!({
            let scale = |v: __m256, n: __m256i| {
                _mm256_castsi256_ps(_mm256_add_epi32(
                    _mm256_castps_si256(v),
                    _mm256_slli_epi32::<23>(n),
                ))
            };
            Halves(scale(v.0, n.0), scale(v.1, n.1))
        })
    }
}

#[expect(clippy::inline_always, reason = "one cost model for all tiers")]
impl Simd for Portable {
    type F = [f32; LANES];
    type I = [u32; LANES];

    const ACCUMULATORS: usize = 4;
    const TILE: usize = 4;
    const SUMS: usize = 1;

    #[inline(always)]
    fn splat_int(self, x: i32) -> Self::I {
        [x.cast_unsigned(); LANES]
    }
    #[inline(always)]
    fn dot(self, sums: Self::I, a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| {
            let product = |shift: u32| {
                let half = |word: u32| (word << (16 - shift)).cast_signed() >> 16;
                half(a[i]).wrapping_mul(half(b[i]))
            };
            sums[i].wrapping_add_signed(product(0)).wrapping_add_signed(product(16))
        })
    }
    #[inline(always)]
    fn add_int(self, a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn negated_shift(self, v: Self::I, shift: u32) -> Self::I {
        v.map(|word| (word << shift).wrapping_neg())
    }
    #[inline(always)]
    fn store_shorts(self, v: Self::I, x: &mut [u32; LANES / 2]) {
        *x = std::array::from_fn(|i| v[2 * i] & 0xffff | v[2 * i + 1] << 16);
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        *x
    }
    #[inline(always)]
    fn load_f16(self, x: &[u16; LANES]) -> Self::F {
        x.map(|bits| half::f16::from_bits(bits).to_f32())
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> Self::F {
        x.map(|bits| half::bf16::from_bits(bits).to_f32())
    }
    #[inline(always)]
    fn store(self, v: Self::F, x: &mut [f32; LANES]) {
        *x = v;
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn sum(self, v: Self::F) -> f32 {
        let eight: [f32; 8] = std::array::from_fn(|i| v[i] + v[i + 8]);
        let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }
    #[inline(always)]
    fn greatest(self, v: Self::F) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    fn select(self, keep: u16, v: Self::F, other: Self::F) -> Self::F {
        std::array::from_fn(|i| if keep >> i & 1 == 1 { v[i] } else { other[i] })
    }
    #[inline(always)]
    fn load_words(self, x: &[u8; 64]) -> Self::I {
        std::array::from_fn(|i| u32::from_le_bytes(x.as_chunks::<4>().0[i]))
    }
    #[inline(always)]
    fn load_bytes(self, x: &[u8; LANES]) -> Self::I {
        x.map(u32::from)
    }
    #[inline(always)]
    fn field(self, v: Self::I, shift: u32, mask: u32) -> Self::I {
        v.map(|word| word >> shift & mask)
    }
    #[inline(always)]
    fn join(self, a: Self::I, b: Self::I, shift: u32) -> Self::I {
        std::array::from_fn(|i| a[i] | b[i] << shift)
    }
    #[inline(always)]
    fn to_float(self, v: Self::I) -> Self::F {
        v.map(|word| word.cast_signed() as f32)
    }
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "callers clamp; `as` saturates")]
    fn to_int(self, v: Self::F) -> Self::I {
        v.map(|x| (x.round_ties_even() as i32).cast_unsigned())
    }
    #[inline(always)]
    fn scale_by_power(self, v: Self::F, n: Self::I) -> Self::F {
        std::array::from_fn(|i| f32::from_bits(v[i].to_bits().wrapping_add(n[i] << 23)))
    }
}
