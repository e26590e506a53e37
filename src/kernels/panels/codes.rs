//! What the bytes of a panel mean, sixteen columns at a time.

use super::{
    super::{
        dense::words16,
        simd::{LANES, Simd},
    },
    BIT_PLANE, BYTE_PLANE, COLUMNS, GROUP, HALVES, NIBBLE_PLANE, OCTETS, SUPER,
};

/// How a group's codes become values: `scale * code + offset`, exactly the file's arithmetic.
pub(super) trait Scales {
    /// Groups of a super-block, bytes of its head, bytes of a group's scales.
    const GROUPS: usize;
    const HEAD: usize;
    const SCALES: usize;
    /// Inputs that share a scale.
    const RUN: usize;
    /// Whether the offset is a number of the file, and not `-scale * zero`.
    const MINIMUM: bool;
    /// `(scale, offset)` of sixteen columns from `column` on, for run `run` of a group; `zero` is the code that means 0.
    fn read<S: Simd>(
        simd: S,
        bytes: (&[u8], &[u8]),
        column: usize,
        run: usize,
        zero: u8,
    ) -> (S::F, S::F);
}

/// A half-precision scale; offset = -scale * zero. (`Q4_0`, `Q5_0`, `Q8_0`)
pub(super) struct Symmetric;
/// A half-precision scale and minimum. (`Q4_1`, `Q5_1`)
pub(super) struct Affine;
/// Byte scale and minimum for each group, times halves of the super-block. (`Q4_K`, `Q5_K`)
pub(super) struct Super;
/// Signed byte scale for each 16 inputs, times a half of the super-block. (`Q6_K`)
pub(super) struct Super16;

#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn halves<S: Simd>(simd: S, bytes: &[u8], column: usize) -> S::F {
    simd.load_f16(words16(&bytes[column * 2..(column + LANES) * 2]))
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn octets<S: Simd>(simd: S, bytes: &[u8], column: usize) -> S::I {
    simd.load_bytes(bytes[column..column + LANES].try_into().expect("sixteen were cut"))
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl Scales for Symmetric {
    const GROUPS: usize = 1;
    const HEAD: usize = 0;
    const SCALES: usize = HALVES;
    const RUN: usize = GROUP;
    const MINIMUM: bool = false;
    #[inline(always)]
    fn read<S: Simd>(
        simd: S,
        (_, scales): (&[u8], &[u8]),
        column: usize,
        _: usize,
        zero: u8,
    ) -> (S::F, S::F) {
        let scale = halves(simd, scales, column);
        (scale, simd.mul(scale, simd.splat(-f32::from(zero))))
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl Scales for Affine {
    const GROUPS: usize = 1;
    const HEAD: usize = 0;
    const SCALES: usize = 2 * HALVES;
    const RUN: usize = GROUP;
    const MINIMUM: bool = true;
    #[inline(always)]
    fn read<S: Simd>(
        simd: S,
        (_, scales): (&[u8], &[u8]),
        column: usize,
        _: usize,
        _: u8,
    ) -> (S::F, S::F) {
        (halves(simd, scales, column), halves(simd, &scales[HALVES..], column))
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl Scales for Super {
    const GROUPS: usize = SUPER;
    const HEAD: usize = 2 * HALVES;
    const SCALES: usize = 2 * OCTETS;
    const RUN: usize = GROUP;
    const MINIMUM: bool = true;
    #[inline(always)]
    fn read<S: Simd>(
        simd: S,
        (head, scales): (&[u8], &[u8]),
        column: usize,
        _: usize,
        _: u8,
    ) -> (S::F, S::F) {
        let scale = simd.to_float(octets(simd, scales, column));
        let min = simd.to_float(octets(simd, &scales[OCTETS..], column));
        let min = simd.mul(min, halves(simd, &head[HALVES..], column));
        (simd.mul(scale, halves(simd, head, column)), simd.mul(min, simd.splat(-1.0)))
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl Scales for Super16 {
    const GROUPS: usize = SUPER;
    const HEAD: usize = HALVES;
    const SCALES: usize = 2 * OCTETS;
    const RUN: usize = GROUP / 2;
    const MINIMUM: bool = false;
    #[inline(always)]
    fn read<S: Simd>(
        simd: S,
        (head, scales): (&[u8], &[u8]),
        column: usize,
        run: usize,
        zero: u8,
    ) -> (S::F, S::F) {
        let bytes = &scales[run * OCTETS + column..][..LANES];
        let scale = simd.load_signed_bytes(bytes.try_into().expect("sixteen were cut"));
        let scale = simd.mul(simd.to_float(scale), halves(simd, head, column));
        (scale, simd.mul(scale, simd.splat(-f32::from(zero))))
    }
}

/// How a group's codes are stored.
pub(super) trait Codes {
    /// Of one group.
    const BYTES: usize;
    /// The code that means 0 where the scale is symmetric.
    const ZERO: u8;
    /// Octets whose products with bytes sixteen bits can sum: two neighbours in a lane, so that codes below 2^n have room for
    /// 2^15 / (2 * 127 * (2^n - 1)) words, and an octet has two.
    const SHORT_OCTETS: usize;
    /// Inputs `4 * quad` to `4 * quad + 3` of sixteen columns from `column` on, in bytes 0, 2, 1 and 3 of each lane.
    fn quad<S: Simd>(simd: S, codes: &[u8], quad: usize, column: usize) -> S::I;

    /// Inputs `8 * octet` to `8 * octet + 7` as sixteen-bit numbers, two after two.
    fn pairs<S: Simd>(simd: S, codes: &[u8], octet: usize, column: usize) -> [S::I; 4];

    /// What half of the codes may be multiplied with, 2 to this power, to save their shifts.
    const RAISED: u32 = 0;
    /// As [`Self::quad`] of both quads of an octet, the second [raised](Self::RAISED).
    #[expect(clippy::inline_always, reason = "part of a kernel")]
    #[inline(always)]
    fn raised_quads<S: Simd>(simd: S, codes: &[u8], octet: usize, column: usize) -> [S::I; 2] {
        // Spelled out: a closure here may be compiled without the tier's instructions, and takes twenty times as long then.
        let left = Self::quad(simd, codes, octet * 2, column);
        [left, Self::quad(simd, codes, octet * 2 + 1, column)]
    }
    /// As [`Self::pairs`], the last two [raised](Self::RAISED).
    #[expect(clippy::inline_always, reason = "part of a kernel")]
    #[inline(always)]
    fn raised_pairs<S: Simd>(simd: S, codes: &[u8], octet: usize, column: usize) -> [S::I; 4] {
        Self::pairs(simd, codes, octet, column)
    }
}

/// A plane of nibbles and so many planes of single bits.
pub(super) struct Nibbles<const PLANES: usize>;
/// Whole bytes.
pub(super) struct Bytes;

#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn words<S: Simd>(simd: S, codes: &[u8], word: usize) -> S::I {
    simd.load_words(codes[word * 4..(word + LANES) * 4].try_into().expect("sixteen were cut"))
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
#[expect(clippy::cast_possible_truncation, reason = "bits of a word")]
impl<const PLANES: usize> Codes for Nibbles<PLANES> {
    const BYTES: usize = NIBBLE_PLANE + PLANES * BIT_PLANE;
    const ZERO: u8 = 8 << PLANES;
    const SHORT_OCTETS: usize = {
        let octets = 4 >> PLANES;
        assert!(octets * 2 * 2 * 127 * ((16 << PLANES) - 1) < 1 << 15);
        octets
    };
    #[inline(always)]
    fn quad<S: Simd>(simd: S, codes: &[u8], quad: usize, column: usize) -> S::I {
        let word = words(simd, codes, quad / 2 * COLUMNS + column);
        let mut quads = simd.field(word, quad as u32 % 2 * 4, 0x0f0f_0f0f);
        for plane in 0..PLANES {
            let bits = words(simd, &codes[NIBBLE_PLANE + plane * BIT_PLANE..], column);
            // Straight to their place, with one shift.
            let (from, to) = (quad as u32, 4 + plane as u32);
            let mask = 0x0101_0101 << to;
            let bits = if from < to {
                simd.field(simd.join(simd.splat_int(0), bits, to - from), 0, mask)
            } else {
                simd.field(bits, from - to, mask)
            };
            quads = simd.join(quads, bits, 0);
        }
        quads
    }
    #[inline(always)]
    fn pairs<S: Simd>(simd: S, codes: &[u8], octet: usize, column: usize) -> [S::I; 4] {
        if PLANES > 0 {
            // Four are put together at a time, and then parted.
            return halves_of::<S, Self>(simd, codes, octet, column);
        }
        let word = words(simd, codes, octet * COLUMNS + column);
        // Spelled out, because closures this deep are not always inlined.
        [
            simd.field(word, 0, 0x000f_000f),
            simd.field(word, 8, 0x000f_000f),
            simd.field(word, 4, 0x000f_000f),
            simd.field(word, 12, 0x000f_000f),
        ]
    }

    const RAISED: u32 = if PLANES == 0 { 4 } else { 0 };
    #[inline(always)]
    fn raised_quads<S: Simd>(simd: S, codes: &[u8], octet: usize, column: usize) -> [S::I; 2] {
        if PLANES > 0 {
            let left = Self::quad(simd, codes, octet * 2, column);
            return [left, Self::quad(simd, codes, octet * 2 + 1, column)];
        }
        let word = words(simd, codes, octet * COLUMNS + column);
        [simd.field(word, 0, 0x0f0f_0f0f), simd.field(word, 0, 0xf0f0_f0f0)]
    }
    #[inline(always)]
    fn raised_pairs<S: Simd>(simd: S, codes: &[u8], octet: usize, column: usize) -> [S::I; 4] {
        if PLANES > 0 {
            return Self::pairs(simd, codes, octet, column);
        }
        let word = words(simd, codes, octet * COLUMNS + column);
        [
            simd.field(word, 0, 0x000f_000f),
            simd.field(word, 8, 0x000f_000f),
            simd.field(word, 0, 0x00f0_00f0),
            simd.field(word, 8, 0x00f0_00f0),
        ]
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl Codes for Bytes {
    const BYTES: usize = BYTE_PLANE;
    const ZERO: u8 = 128;
    const SHORT_OCTETS: usize = 0;
    #[inline(always)]
    fn quad<S: Simd>(simd: S, codes: &[u8], quad: usize, column: usize) -> S::I {
        words(simd, codes, quad * COLUMNS + column)
    }
    #[inline(always)]
    fn pairs<S: Simd>(simd: S, codes: &[u8], octet: usize, column: usize) -> [S::I; 4] {
        halves_of::<S, Self>(simd, codes, octet, column)
    }
}

/// The bytes of two quads as sixteen-bit numbers.
#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn halves_of<S: Simd, C: Codes>(simd: S, codes: &[u8], octet: usize, column: usize) -> [S::I; 4] {
    // Spelled out, because closures this deep are not always inlined.
    let left = C::quad(simd, codes, octet * 2, column);
    let right = C::quad(simd, codes, octet * 2 + 1, column);
    [
        simd.field(left, 0, 0x00ff_00ff),
        simd.field(left, 8, 0x00ff_00ff),
        simd.field(right, 0, 0x00ff_00ff),
        simd.field(right, 8, 0x00ff_00ff),
    ]
}

/// One group of a panel.
#[derive(Clone, Copy)]
pub(super) struct Group<'a> {
    /// Of its super-block.
    pub(super) head: &'a [u8],
    pub(super) scales: &'a [u8],
    pub(super) codes: &'a [u8],
}

/// Group `index` of a panel.
#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
pub(super) fn group<Q: Scales, C: Codes>(panel: &[u8], index: usize) -> Group<'_> {
    let length = Q::SCALES + C::BYTES;
    let supers = &panel[index / Q::GROUPS * (Q::HEAD + Q::GROUPS * length)..];
    let (head, groups) = supers.split_at(Q::HEAD);
    let group = &groups[index % Q::GROUPS * length..][..length];
    let (scales, codes) = group.split_at(Q::SCALES);
    Group { head, scales, codes }
}
