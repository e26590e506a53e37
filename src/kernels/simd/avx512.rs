//! [`Simd`] in vectors of 512 bits.

use std::arch::x86_64::{
    __m512, __m512i, _mm_loadu_si128, _mm_storeu_si128, _mm256_loadu_si256, _mm256_storeu_si256,
    _mm512_add_epi16, _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512, _mm512_castps_si512,
    _mm512_castps512_ps256, _mm512_castsi512_ps, _mm512_cvtepi8_epi32, _mm512_cvtepi32_epi8,
    _mm512_cvtepi32_epi16, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32, _mm512_cvtepu16_epi32,
    _mm512_cvtph_ps, _mm512_cvtps_epi32, _mm512_div_ps, _mm512_extractf32x8_ps, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_maddubs_epi16, _mm512_mask_blend_ps, _mm512_max_ps,
    _mm512_min_ps, _mm512_mul_ps, _mm512_or_si512, _mm512_reduce_max_ps, _mm512_set1_epi16,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_si512, _mm512_slli_epi32, _mm512_sllv_epi32,
    _mm512_srav_epi32, _mm512_srlv_epi32, _mm512_storeu_ps, _mm512_sub_epi32,
};

use super::{Avx512, LANES, Simd, avx2::sum256, with_features};

#[expect(clippy::inline_always, reason = "must be compiled inside the caller's target features")]
impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;

    const ACCUMULATORS: usize = 24;
    const TILE: usize = 8;
    const SUMS: usize = 16;
    const AHEAD: usize = 0;
    const REGISTERS: usize = 1;
    const SHORT_SUMS: bool = false;

    #[inline(always)]
    fn splat_int(self, x: i32) -> __m512i {
        with_features!(_mm512_set1_epi32(x))
    }
    #[inline(always)]
    fn dot(self, sums: __m512i, a: __m512i, b: __m512i) -> __m512i {
        with_features!(dpwssd(sums, a, b))
    }
    #[inline(always)]
    fn dot_bytes(self, sums: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        with_features!(dpbusd(sums, codes, x))
    }
    #[inline(always)]
    fn dot_short(self, sums: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        with_features!(_mm512_add_epi16(sums, _mm512_maddubs_epi16(codes, x)))
    }
    #[inline(always)]
    fn add_halves(self, sums: __m512i, short: __m512i) -> __m512i {
        with_features!(dpwssd(sums, short, _mm512_set1_epi16(1)))
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
    fn shifted_down(self, v: __m512i, shift: u32) -> __m512i {
        with_features!(_mm512_srav_epi32(v, _mm512_set1_epi32(shift.cast_signed())))
    }
    #[inline(always)]
    fn store_shorts(self, v: __m512i, x: &mut [u32; LANES / 2]) {
        with_features!(_mm256_storeu_si256(x.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(v)));
    }
    #[inline(always)]
    fn store_bytes(self, v: __m512i, x: &mut [u8; LANES]) {
        with_features!(_mm_storeu_si128(x.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(v)));
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
    fn load_signed_bytes(self, x: &[u8; LANES]) -> __m512i {
        with_features!(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast())))
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

/// Instructions whose intrinsics in a chain LLVM (22 at least) takes apart into a product and a sum, which takes twice the
/// instructions to save a little latency that nothing here waits for.
macro_rules! in_one {
    ($name:ident, $instruction:literal) => {
        #[inline]
        #[target_feature(enable = "avx512f,avx512vnni")]
        fn $name(mut sums: __m512i, a: __m512i, b: __m512i) -> __m512i {
            // SAFETY: one instruction on registers, which this function's callers have proved.
            unsafe {
                std::arch::asm!(
                    concat!($instruction, " {sums}, {a}, {b}"),
                    sums = inout(zmm_reg) sums,
                    a = in(zmm_reg) a,
                    b = in(zmm_reg) b,
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            sums
        }
    };
}

in_one!(dpwssd, "vpdpwssd");
in_one!(dpbusd, "vpdpbusd");
