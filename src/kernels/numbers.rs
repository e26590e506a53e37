//! The matrices of adapters as they lie in memory: in the type they were trained in, or as 8-bit codes.
//!
//! Codes lie in groups of 32 that share a scale, as those of llama.cpp's `Q8_0` do. A number is its code times its group's
//! scale. The scale is a `bf16`: that has the range of `f32`, so that the small numbers of a B that was trained little keep
//! their precision, and its product with a code has 15 bits, which `f32` holds exactly. What kernels compute with codes is
//! therefore what they would compute with the numbers that [`Numbers::get`] gives.
//!
//! Rounding leaves some 0.5 % of a product `B A` of the adapters here. With one scale for a row it is a fifth more; with
//! scales of 32 bits it is the same, and codes would take 36 bytes a group instead of 34.

use std::io;

use half::{bf16, f16};

use super::{
    dense::{Bf16, Dense, F16, F32},
    memory::{Part, Slab},
    simd::{LANES, Simd, prefetch},
};

/// Numbers that share a scale; rows of matrices are filled up to whole groups.
pub const GROUP: usize = 32;
/// The greatest code, and the least one without its sign.
const MOST: f32 = 127.0;
/// Bytes of a scale.
const SCALE: usize = 2;

/// The type of [`Numbers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumberType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// Codes from -127 to 127 and a scale for each group.
    Int8,
}

impl NumberType {
    /// Bytes of one number, or code.
    fn width(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Int8 => 1,
        }
    }

    /// Bytes of so many numbers, and of those among them that are no scales.
    fn bytes_of(self, len: usize) -> (usize, usize) {
        match self {
            Self::Int8 => {
                let groups = len.div_ceil(GROUP);
                (groups * (GROUP + SCALE), groups * GROUP)
            }
            other => (len * other.width(), len * other.width()),
        }
    }
}

/// Numbers in memory, widened when they are used.
pub struct Numbers {
    kind: NumberType,
    len: usize,
    /// The numbers side by side; or codes, filled up to whole groups, then the scale of each group.
    part: Part,
}

impl Numbers {
    /// So many zeros.
    ///
    /// # Panics
    /// Where they do not fit into a slab of known size.
    pub fn zeros(slab: &Slab, kind: NumberType, len: usize) -> io::Result<Self> {
        Ok(Self { kind, len, part: slab.take(kind.bytes_of(len).0)? })
    }

    /// Bytes of a slab that so many numbers take.
    pub fn bytes_of(kind: NumberType, len: usize) -> usize {
        Slab::bytes_of(kind.bytes_of(len).0)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        Slab::bytes_of(self.part.len())
    }

    /// Their type.
    pub fn kind(&self) -> NumberType {
        self.kind
    }

    /// The number at `index`, widened.
    ///
    /// # Panics
    /// Where there is no such number.
    pub fn get(&self, index: usize) -> f32 {
        match self.kind {
            NumberType::F32 => f32::from_le_bytes(self.part.as_chunks().0[index]),
            NumberType::F16 => f16::from_le_bytes(self.part.as_chunks().0[index]).to_f32(),
            NumberType::BF16 => bf16::from_le_bytes(self.part.as_chunks().0[index]).to_f32(),
            NumberType::Int8 => {
                let code = f32::from(self.part[..self.len][index].cast_signed());
                code * self.groups::<Codes>(index / GROUP, 1).scale(0)
            }
        }
    }

    /// Rounds `values` to nearest even into the numbers from `first` on, which begins a group; exact where they came from
    /// this type. Codes are of whole groups, of which the last may lack what the numbers lack.
    ///
    /// A group's scale is the least `bf16` for which no code is greater than 127, so that a number is off by half of it at
    /// most. Of magnitudes below 2^-134 nothing is left.
    ///
    /// # Panics
    /// Where `first` or the end is within a group, or the end is beyond the numbers.
    pub fn write(&mut self, first: usize, values: &[f32]) {
        let end = first + values.len();
        assert!(first.is_multiple_of(GROUP), "number {first} begins no group");
        assert!(end == self.len || end.is_multiple_of(GROUP), "number {end} begins no group");
        let width = self.kind.width();
        let part = first * width..end * width;
        match self.kind {
            NumberType::F32 => put(&mut self.part[part], values, f32::to_le_bytes),
            NumberType::F16 => {
                put(&mut self.part[part], values, |x| f16::from_f32(x).to_le_bytes());
            }
            NumberType::BF16 => {
                put(&mut self.part[part], values, |x| bf16::from_f32(x).to_le_bytes());
            }
            NumberType::Int8 => {
                let (codes, scales) = self.part.split_at_mut(self.kind.bytes_of(self.len).1);
                let scales = scales.as_chunks_mut::<SCALE>().0[first / GROUP..].iter_mut();
                let codes = codes[part].chunks_mut(GROUP);
                for ((values, codes), scale) in values.chunks(GROUP).zip(codes).zip(scales) {
                    *scale = round(values, codes).to_le_bytes();
                }
            }
        }
    }

    /// The bytes of the numbers, and of the scales of codes.
    #[expect(clippy::inline_always, reason = "part of a kernel")]
    #[inline(always)]
    pub(crate) fn as_they_lie(&self) -> (&[u8], &[u8]) {
        self.part.split_at(self.kind.bytes_of(self.len).1)
    }

    /// So many groups from group `first` on, of numbers whose type is `N`.
    #[expect(clippy::inline_always, reason = "part of a kernel, which then knows the length")]
    #[inline(always)]
    pub(super) fn groups<N: Widen>(&self, first: usize, count: usize) -> Groups<'_> {
        let bytes = GROUP * N::WIDTH;
        let (numbers, scales) = self.as_they_lie();
        let scales = scales.as_chunks().0;
        Groups {
            numbers: &numbers[first * bytes..][..count * bytes],
            scales: if scales.is_empty() { scales } else { &scales[first..][..count] },
        }
    }

    /// Asks for so many groups from group `first` on.
    pub(super) fn prefetch(&self, first: usize, count: usize) {
        let Groups { numbers, scales } = match self.kind {
            NumberType::F32 => self.groups::<F32>(first, count),
            NumberType::F16 => self.groups::<F16>(first, count),
            NumberType::BF16 => self.groups::<Bf16>(first, count),
            NumberType::Int8 => self.groups::<Codes>(first, count),
        };
        prefetch(numbers);
        prefetch(scales.as_flattened());
    }
}

impl std::fmt::Debug for Numbers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}[{}]", self.kind, self.len)
    }
}

fn put<const SIZE: usize>(out: &mut [u8], values: &[f32], bytes: impl Fn(f32) -> [u8; SIZE]) {
    for (out, value) in out.as_chunks_mut::<SIZE>().0.iter_mut().zip(values) {
        *out = bytes(*value);
    }
}

/// Rounds a group to codes, and yields their scale.
#[expect(clippy::cast_possible_truncation, reason = "-127 to 127; `as` makes 0 of 0 / 0")]
fn round(values: &[f32], codes: &mut [u8]) -> bf16 {
    let top = values.iter().fold(0.0_f32, |top, value| top.max(value.abs()));
    // Up, as far as the upper half of the bits goes: codes must not be cut off.
    let upper = (top / MOST).to_bits().div_ceil(1 << 16);
    let scale = bf16::from_bits(u16::try_from(upper).expect("32 - 16 bits"));
    let unit = scale.to_f32();
    for (code, value) in codes.iter_mut().zip(values) {
        let nearest = (value / unit).round_ties_even().clamp(-MOST, MOST);
        *code = (nearest as i8).cast_unsigned();
    }
    scale
}

/// Neighbouring groups of some [`Numbers`], as kernels read them.
#[derive(Clone, Copy)]
pub(super) struct Groups<'a> {
    numbers: &'a [u8],
    /// Of codes.
    scales: &'a [[u8; SCALE]],
}

impl Groups<'_> {
    /// The scale of a group of codes.
    #[expect(clippy::inline_always, reason = "part of a kernel")]
    #[inline(always)]
    fn scale(self, group: usize) -> f32 {
        // `bf16::to_f32` would ask whether it is a number, in the innermost loop.
        f32::from_bits(u32::from(u16::from_le_bytes(self.scales[group])) << 16)
    }
}

/// A type of [`Numbers`] in a kernel.
pub(super) trait Widen {
    /// Bytes of one, scales aside.
    const WIDTH: usize;
    /// The sixteen numbers of half a group: `half / 2` is the group, counted from the first of `groups`.
    fn widen<S: Simd>(simd: S, groups: Groups<'_>, half: usize) -> S::F;
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl<D: Dense> Widen for D {
    const WIDTH: usize = <D as Dense>::WIDTH;

    #[inline(always)]
    fn widen<S: Simd>(simd: S, groups: Groups<'_>, half: usize) -> S::F {
        let bytes = LANES * <D as Dense>::WIDTH;
        <D as Dense>::widen(simd, &groups.numbers[half * bytes..(half + 1) * bytes])
    }
}

/// [`NumberType::Int8`].
pub(super) struct Codes;

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl Widen for Codes {
    const WIDTH: usize = 1;

    #[inline(always)]
    fn widen<S: Simd>(simd: S, groups: Groups<'_>, half: usize) -> S::F {
        let codes = &groups.numbers.as_chunks().0[half];
        let codes = simd.to_float(simd.load_signed_bytes(codes));
        simd.mul(codes, simd.splat(groups.scale(half / 2)))
    }
}

#[cfg(test)]
mod tests {
    use std::marker::PhantomData;

    use proptest::prelude::*;

    use super::{
        super::simd::{Kernel, Tier},
        *,
    };

    const KINDS: [NumberType; 4] =
        [NumberType::F32, NumberType::F16, NumberType::BF16, NumberType::Int8];

    fn stored(kind: NumberType, values: &[f32]) -> Numbers {
        let slab = Slab::new(Numbers::bytes_of(kind, values.len())).unwrap();
        let mut all = Numbers::zeros(&slab, kind, values.len()).unwrap();
        all.write(0, values);
        all
    }

    #[test]
    fn numbers_of_one_slab_do_not_touch() {
        let parts = KINDS.into_iter().zip([3, 5, 40, 70]);
        let bytes = parts.clone().map(|(kind, len)| Numbers::bytes_of(kind, len)).sum();
        let slab = Slab::new(bytes).unwrap();
        let mut parts: Vec<_> =
            parts.map(|(kind, len)| Numbers::zeros(&slab, kind, len).unwrap()).collect();
        for (value, part) in [1.0, 2.0, 3.0, 127.0].into_iter().zip(&mut parts) {
            part.write(0, &vec![value; part.len()]);
        }
        for (value, part) in [1.0_f32, 2.0, 3.0, 127.0].into_iter().zip(&parts) {
            assert!((0..part.len()).all(|at| part.get(at).to_bits() == value.to_bits()));
        }
    }

    #[test]
    fn codes_take_34_bytes_a_group() {
        for (len, bytes) in [(0, 0), (1, 64), (32, 64), (64, 128), (32 * 64, 34 * 64)] {
            assert_eq!(Numbers::bytes_of(NumberType::Int8, len), bytes, "{len}");
        }
    }

    #[test]
    fn each_group_is_rounded_by_itself_to_nearest_even() {
        let mut values = [0.0; 3 * GROUP];
        // A scale of 2^-7, and numbers half way between two codes.
        values[..4].copy_from_slice(&[127.0 / 128.0, 0.5 / 128.0, 1.5 / 128.0, -2.5 / 128.0]);
        values[2 * GROUP] = -65_504.0;
        values[2 * GROUP + 1] = 200.0;
        let numbers = stored(NumberType::Int8, &values);
        let got = |group, count| -> Vec<f32> {
            (group * GROUP..group * GROUP + count).map(|at| numbers.get(at)).collect()
        };
        assert_eq!(got(0, 4), [127.0, 0.0, 2.0, -2.0].map(|x| x / 128.0));
        assert_eq!(got(1, GROUP), [0.0; GROUP], "0 / 0 is no number");
        // 65,504 / 127 is 515.8: the next bf16 is 516.
        assert_eq!(got(2, 3), [-127.0 * 516.0, 0.0, 0.0]);
    }

    #[test]
    fn magnitudes_near_the_ends_of_the_range_stay_numbers() {
        for top in [f32::from_bits(1), 1e-45, 1e-43, 1e-40, f32::MIN_POSITIVE, 1e-30, 1e30, 1.6e38]
        {
            let numbers = stored(NumberType::Int8, &[top, -top / 2.0, 0.0]);
            let least = bf16::from_bits(1).to_f32();
            for (at, want) in [top, -top / 2.0, 0.0].into_iter().enumerate() {
                let off = (numbers.get(at) - want).abs();
                assert!(off <= (top / 127.0).max(least), "{want} became {}", numbers.get(at));
            }
        }
    }

    /// Widens all of some groups.
    struct All<'a, N>(Groups<'a>, PhantomData<N>);

    impl<N: Widen> Kernel for All<'_, N> {
        type Output = Vec<[f32; LANES]>;

        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let mut all = vec![[0.0; LANES]; self.0.numbers.len() / N::WIDTH / LANES];
            for (half, out) in all.iter_mut().enumerate() {
                simd.store(N::widen(simd, self.0, half), out);
            }
            all
        }
    }

    proptest! {
        #[test]
        fn a_code_is_off_by_half_a_scale_at_most(
            values in prop::collection::vec(-1.0_f32..1.0, 1..100),
            magnitude in -120_i32..100,
        ) {
            let values: Vec<_> = values.into_iter().map(|x| x * 2.0_f32.powi(magnitude)).collect();
            let numbers = stored(NumberType::Int8, &values);
            for (group, values) in values.chunks(GROUP).enumerate() {
                let top = values.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
                // The smallest scales are not normal: they lie further apart for their size.
                let scale = top / MOST * (1.0 + 1.0 / 128.0) + bf16::from_bits(1).to_f32();
                for (at, value) in values.iter().enumerate() {
                    let got = numbers.get(group * GROUP + at);
                    prop_assert!((got - value).abs() <= scale / 2.0, "{value} became {got}, of {top}");
                }
            }
        }

        #[test]
        fn every_tier_reads_what_the_plain_look_does(
            bits in prop::collection::vec(any::<u16>(), 1..6 * GROUP),
            first in 0_usize..5,
        ) {
            let finite = |bits: u16| Some(f16::from_bits(bits).to_f32()).filter(|x| x.is_finite());
            let mut values: Vec<_> = bits.into_iter().map(|b| finite(b).unwrap_or(1.0)).collect();
            values.resize(values.len().next_multiple_of(GROUP), 0.0);
            let first = first.min(values.len() / GROUP - 1);
            for kind in KINDS {
                let numbers = stored(kind, &values);
                let count = values.len() / GROUP - first;
                let want: Vec<_> =
                    (first * GROUP..values.len()).map(|at| numbers.get(at).to_bits()).collect();
                for tier in Tier::available() {
                    let got = match kind {
                        NumberType::F32 => tier.run(All::<F32>(numbers.groups::<F32>(first, count), PhantomData)),
                        NumberType::F16 => tier.run(All::<F16>(numbers.groups::<F16>(first, count), PhantomData)),
                        NumberType::BF16 => tier.run(All::<Bf16>(numbers.groups::<Bf16>(first, count), PhantomData)),
                        NumberType::Int8 => tier.run(All::<Codes>(numbers.groups::<Codes>(first, count), PhantomData)),
                    };
                    let got: Vec<_> = got.as_flattened().iter().map(|x| x.to_bits()).collect();
                    prop_assert_eq!(&got, &want, "{:?} on {}", kind, tier);
                }
            }
        }
    }
}
