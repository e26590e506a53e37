//! [`Simd`] in plain Rust: what the other tiers must agree with.

use super::{LANES, Portable, Simd};

#[expect(clippy::inline_always, reason = "one cost model for all tiers")]
impl Simd for Portable {
    type F = [f32; LANES];
    type I = [u32; LANES];

    const ACCUMULATORS: usize = 4;
    const TILE: usize = 4;
    const SUMS: usize = 4;
    const AHEAD: usize = 6;
    const REGISTERS: usize = 4;
    const SHORT_SUMS: bool = false;

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
    fn dot_bytes(self, sums: Self::I, codes: Self::I, x: Self::I) -> Self::I {
        std::array::from_fn(|i| {
            let products = codes[i].to_le_bytes().into_iter().zip(x[i].to_le_bytes());
            products.fold(sums[i], |sum, (code, x)| {
                sum.wrapping_add_signed(i32::from(code) * i32::from(x.cast_signed()))
            })
        })
    }
    #[inline(always)]
    fn dot_short(self, sums: Self::I, codes: Self::I, x: Self::I) -> Self::I {
        std::array::from_fn(|i| {
            let [sums, codes, x] = [sums[i], codes[i], x[i]].map(u32::to_le_bytes);
            let half = |at: usize| {
                let product =
                    |at: usize| i16::from(codes[at]).wrapping_mul(i16::from(x[at].cast_signed()));
                let sum = i16::from_le_bytes([sums[at], sums[at + 1]]);
                let sum = sum.wrapping_add(product(at)).wrapping_add(product(at + 1));
                u32::from(sum.cast_unsigned())
            };
            half(0) | half(2) << 16
        })
    }
    #[inline(always)]
    fn add_halves(self, sums: Self::I, short: Self::I) -> Self::I {
        self.dot(sums, short, [0x0001_0001; LANES])
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
    fn shifted_down(self, v: Self::I, shift: u32) -> Self::I {
        v.map(|word| (word.cast_signed() >> shift).cast_unsigned())
    }
    #[inline(always)]
    fn store_shorts(self, v: Self::I, x: &mut [u32; LANES / 2]) {
        *x = std::array::from_fn(|i| v[2 * i] & 0xffff | v[2 * i + 1] << 16);
    }
    #[inline(always)]
    fn store_bytes(self, v: Self::I, x: &mut [u8; LANES]) {
        *x = v.map(|word| word.to_le_bytes()[0]);
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
    fn load_signed_bytes(self, x: &[u8; LANES]) -> Self::I {
        x.map(|byte| i32::from(byte.cast_signed()).cast_unsigned())
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
