//! [`Simd`] in two vectors of 256 bits.

use std::arch::x86_64::{
    __m256, __m256i, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_loadl_epi64, _mm_loadu_si128,
    _mm_max_ps, _mm_max_ss, _mm_movehl_ps, _mm_packus_epi16, _mm_shuffle_ps, _mm_storeu_si128,
    _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256, _mm256_blendv_ps, _mm256_castps_si256,
    _mm256_castps256_ps128, _mm256_castsi256_ps, _mm256_castsi256_si128, _mm256_cmpeq_epi32,
    _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32, _mm256_cvtepu16_epi32,
    _mm256_cvtph_ps, _mm256_cvtps_epi32, _mm256_div_ps, _mm256_extractf128_ps,
    _mm256_extracti128_si256, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps, _mm256_or_si256,
    _mm256_packs_epi32, _mm256_permute4x64_epi64, _mm256_set1_epi16, _mm256_set1_epi32,
    _mm256_set1_ps, _mm256_setr_epi32, _mm256_setzero_si256, _mm256_slli_epi16, _mm256_slli_epi32,
    _mm256_sllv_epi32, _mm256_srai_epi16, _mm256_srai_epi32, _mm256_srav_epi32, _mm256_srli_epi16,
    _mm256_srlv_epi32, _mm256_storeu_ps, _mm256_storeu_si256, _mm256_sub_epi32,
};

use super::{Avx2, LANES, Simd, with_features};

/// The fixed tree of [`Simd::sum`], from its second level on.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn sum256(low: __m256, high: __m256) -> f32 {
    let v = _mm256_add_ps(low, high);
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
}

/// Two halves of eight lanes.
#[derive(Clone, Copy, Debug)]
pub struct Halves<T>(T, T);

#[expect(clippy::inline_always, reason = "must be compiled inside the caller's target features")]
impl Simd for Avx2 {
    type F = Halves<__m256>;
    type I = Halves<__m256i>;

    const ACCUMULATORS: usize = 6;
    const TILE: usize = 4;
    const SUMS: usize = 4;
    const AHEAD: usize = 6;
    const REGISTERS: usize = 2;
    const SHORT_SUMS: bool = true;

    #[inline(always)]
    fn splat_int(self, x: i32) -> Self::I {
        with_features!(Halves(_mm256_set1_epi32(x), _mm256_set1_epi32(x)))
    }
    #[inline(always)]
    fn dot(self, sums: Self::I, a: Self::I, b: Self::I) -> Self::I {
        with_features!(Halves(madd(sums.0, a.0, b.0), madd(sums.1, a.1, b.1)))
    }
    #[inline(always)]
    fn dot_bytes(self, sums: Self::I, codes: Self::I, x: Self::I) -> Self::I {
        // `vpmaddubsw` saturates: bytes are widened to sixteen bits first.
        let low = with_features!(Halves(
            _mm256_and_si256(codes.0, _mm256_set1_epi16(0xff)),
            _mm256_and_si256(codes.1, _mm256_set1_epi16(0xff))
        ));
        let x_low = with_features!(Halves(
            _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x.0)),
            _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x.1))
        ));
        let high = with_features!(Halves(
            _mm256_srli_epi16::<8>(codes.0),
            _mm256_srli_epi16::<8>(codes.1)
        ));
        let x_high =
            with_features!(Halves(_mm256_srai_epi16::<8>(x.0), _mm256_srai_epi16::<8>(x.1)));
        self.dot(self.dot(sums, low, x_low), high, x_high)
    }
    #[inline(always)]
    fn dot_short(self, sums: Self::I, codes: Self::I, x: Self::I) -> Self::I {
        with_features!(Halves(maddubs(sums.0, codes.0, x.0), maddubs(sums.1, codes.1, x.1)))
    }
    #[inline(always)]
    fn add_halves(self, sums: Self::I, short: Self::I) -> Self::I {
        with_features!({
            let one = _mm256_set1_epi16(1);
            Halves(
                _mm256_add_epi32(sums.0, _mm256_madd_epi16(short.0, one)),
                _mm256_add_epi32(sums.1, _mm256_madd_epi16(short.1, one)),
            )
        })
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
    fn shifted_down(self, v: Self::I, shift: u32) -> Self::I {
        with_features!({
            let shift = _mm256_set1_epi32(shift.cast_signed());
            Halves(_mm256_srav_epi32(v.0, shift), _mm256_srav_epi32(v.1, shift))
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
    fn store_bytes(self, v: Self::I, x: &mut [u8; LANES]) {
        with_features!({
            let low = |v| _mm256_and_si256(v, _mm256_set1_epi32(0xff));
            let packed = _mm256_packs_epi32(low(v.0), low(v.1));
            let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
            let (left, right) =
                (_mm256_castsi256_si128(ordered), _mm256_extracti128_si256::<1>(ordered));
            _mm_storeu_si128(x.as_mut_ptr().cast(), _mm_packus_epi16(left, right));
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
    fn load_signed_bytes(self, x: &[u8; LANES]) -> Self::I {
        with_features!(Halves(
            _mm256_cvtepi8_epi32(_mm_loadl_epi64(x.as_ptr().cast())),
            _mm256_cvtepi8_epi32(_mm_loadl_epi64(x[8..].as_ptr().cast()))
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

/// A product and its sum, held together. LLVM takes chains of the intrinsics apart into trees, and trees of a kernel's length do not
/// fit into sixteen registers: most of the time went into putting them aside.
macro_rules! product_and_sum {
    ($name:ident, $product:literal, $sum:literal) => {
        #[inline]
        #[target_feature(enable = "avx2")]
        fn $name(mut sums: __m256i, a: __m256i, b: __m256i) -> __m256i {
            // SAFETY: two instructions on registers, which this function's callers have proved.
            unsafe {
                std::arch::asm!(
                    concat!($product, " {product}, {a}, {b}"),
                    concat!($sum, " {sums}, {sums}, {product}"),
                    product = out(ymm_reg) _,
                    sums = inout(ymm_reg) sums,
                    a = in(ymm_reg) a,
                    b = in(ymm_reg) b,
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            sums
        }
    };
}

product_and_sum!(madd, "vpmaddwd", "vpaddd");
product_and_sum!(maddubs, "vpmaddubsw", "vpaddw");
