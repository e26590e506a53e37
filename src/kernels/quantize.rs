//! Inputs rounded to sixteen or to eight bits, for products with codes.
//!
//! Sixteen: a row has one scale, that of its greatest magnitude. No number of a row is more than `sqrt(inputs)` times as
//! large as their root mean square, so that what rounding adds is at most `sqrt(inputs) / 2^16` of that: for the 576 and
//! 1,536 inputs of the default base some hundred times less than eight bits leave of it, whatever outliers there are.
//!
//! Eight: each group of 32 has a scale of its own (llama.cpp's `Q8_0`). Products of many rows cost two thirds, and rounding
//! moves perplexities of single tasks by up to five hundredths.
//!
//! A row's codes depend on that row alone.

use std::ops::Range;

use super::{
    pool::Disjoint,
    simd::{Kernel, LANES, Simd, Tier},
};

/// Inputs whose codes are summed up.
pub(super) const GROUP: usize = 32;

/// What inputs are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bits {
    /// Four neighbours in a word, in the order 0, 2, 1, 3 that codes have there; a scale for each group.
    Eight,
    /// Two neighbours in a word; a scale for each row.
    Sixteen,
}

impl Bits {
    /// Words of a group.
    fn words(self) -> usize {
        match self {
            Self::Eight => GROUP / 4,
            Self::Sixteen => GROUP / 2,
        }
    }
}

/// Rows `[rows, inputs]` as codes, in tiles of rows that are computed together.
#[derive(Debug)]
pub(super) struct Quantized {
    bits: Bits,
    groups: usize,
    /// For each tile `[groups, words of a group, rows of the tile]`.
    words: Vec<u32>,
    /// For each tile `[groups, rows of the tile]`.
    sums: Vec<Sums>,
    /// Value of code 1 in each row, where its groups have none of their own; not a number where an input is none.
    scales: Vec<f32>,
}

/// A group of a row.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    /// Sum of its 32 codes.
    pub(super) whole: i32,
    /// Of either half.
    pub(super) halves: [i32; 2],
    /// Value of code 1: with sixteen bits 1, because that is the row's.
    pub(super) scale: f32,
    /// `scale * whole`
    pub(super) value: f32,
}

/// `R` rows side by side.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a, const R: usize> {
    pub(super) bits: Bits,
    pub(super) words: &'a [[u32; R]],
    pub(super) sums: &'a [[Sums; R]],
    pub(super) scales: &'a [f32; R],
}

impl Quantized {
    /// Room for `rows` rows, whose inputs fill whole groups.
    pub(super) fn new(bits: Bits, rows: usize, inputs: usize) -> Self {
        let groups = inputs / GROUP;
        Self {
            bits,
            groups,
            words: vec![0; rows * groups * bits.words()],
            sums: vec![Sums::default(); rows * groups],
            scales: vec![0.0; rows],
        }
    }

    /// Its memory, for the tiles to be filled side by side.
    pub(super) fn room(&mut self) -> Room<'_> {
        Room {
            bits: self.bits,
            groups: self.groups,
            words: Disjoint::new(&mut self.words),
            sums: Disjoint::new(&mut self.sums),
            scales: Disjoint::new(&mut self.scales),
        }
    }

    /// The tile of `R` rows that begins at `row`.
    #[inline]
    pub(super) fn tile<const R: usize>(&self, row: usize) -> Tile<'_, R> {
        let part = |per_row: usize| row * per_row..(row + R) * per_row;
        Tile {
            bits: self.bits,
            words: self.words[part(self.groups * self.bits.words())].as_chunks().0,
            sums: self.sums[part(self.groups)].as_chunks().0,
            scales: self.scales[row..].first_chunk().expect("callers take tiles as they are cut"),
        }
    }
}

/// Where tiles are rounded into.
pub(super) struct Room<'a> {
    bits: Bits,
    groups: usize,
    words: Disjoint<'a, u32>,
    sums: Disjoint<'a, Sums>,
    scales: Disjoint<'a, f32>,
}

impl Room<'_> {
    /// Rounds the rows `x [rows, inputs]` of one tile.
    ///
    /// # Safety
    /// No two calls for the same rows at a time.
    pub(super) unsafe fn round(&self, tier: Tier, rows: &Range<usize>, x: &[f32]) {
        let Self { bits, groups, .. } = *self;
        let part = |per_row: usize| rows.start * per_row..rows.end * per_row;
        // SAFETY: these rows' parts, by the caller's promise.
        let words = unsafe { self.words.part(part(groups * bits.words())) };
        // SAFETY: as above.
        let sums = unsafe { self.sums.part(part(groups)) };
        // SAFETY: as above.
        let scales = unsafe { self.scales.part(rows.clone()) };
        for (place, (x, scale)) in x.chunks_exact(groups * GROUP).zip(scales).enumerate() {
            let row = Row { x, place, rows: rows.len(), words, sums };
            *scale = match bits {
                Bits::Eight => tier.run(Bytes(row)),
                Bits::Sixteen => tier.run(Shorts(row)),
            };
        }
    }
}

/// Cuts rows into tiles: as large as they come, and the rest into two at most, since each takes all codes apart once more.
pub(super) fn tiles(rows: Range<usize>, largest: usize) -> impl Iterator<Item = Range<usize>> {
    let mut first = rows.start;
    std::iter::from_fn(move || {
        let size = match rows.end - first {
            0 => return None,
            left if left >= largest => largest,
            5 => 3,
            6 | 7 => 4,
            left => left,
        };
        first += size;
        Some(first - size..first)
    })
}

/// One row, and its place in a tile of `rows`.
struct Row<'a> {
    x: &'a [f32],
    place: usize,
    rows: usize,
    words: &'a mut [u32],
    sums: &'a mut [Sums],
}

impl Row<'_> {
    /// The groups: inputs, words (of which `place` and every `rows`-th after it are the row's), and sums.
    fn groups(
        &mut self,
        words: usize,
    ) -> impl Iterator<Item = (&[f32; GROUP], &mut [u32], &mut Sums)> {
        let place = self.place;
        let sums = self.sums.chunks_exact_mut(self.rows).map(move |sums| &mut sums[place]);
        let words = self.words.chunks_exact_mut(self.rows * words);
        let groups = self.x.as_chunks().0.iter().zip(words).zip(sums);
        groups.map(|((x, words), sums)| (x, words, sums))
    }
}

/// Sixteen bits; yields the scale.
struct Shorts<'a>(Row<'a>);

impl Kernel for Shorts<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        const MOST: f32 = 32_767.0;
        let mut row = self.0;
        let (top, probe) = greatest(simd, row.x);
        let inverse = MOST / top;
        // Of zeros, and of magnitudes so small that they have no inverse, nothing is left. A row with an input that is
        // not finite must not come out as one that is: its scale is not a number.
        let nothing = probe.is_nan() || !inverse.is_finite();
        let (inverse, scale) = if nothing { (0.0, probe) } else { (inverse, top / MOST) };
        let (place, rows) = (row.place, row.rows);
        for (x, words, sums) in row.groups(GROUP / 2) {
            if nothing {
                words.iter_mut().skip(place).step_by(rows).for_each(|word| *word = 0);
                *sums = Sums { scale: 1.0, ..Sums::default() };
                continue;
            }
            let mut codes = [0; GROUP / 2];
            let mut halves = [0; 2];
            let vectors = x.as_chunks::<LANES>().0.iter().zip(codes.as_chunks_mut().0);
            for ((x, codes), sum) in vectors.zip(&mut halves) {
                let rounded = simd.to_int(simd.mul(simd.load(x), simd.splat(inverse)));
                simd.store_shorts(rounded, codes);
                *sum = sum_of(simd, rounded);
            }
            for (words, code) in words.chunks_exact_mut(rows).zip(codes) {
                words[place] = code;
            }
            let whole = halves[0] + halves[1];
            *sums = Sums { whole, halves, scale: 1.0, value: whole as f32 };
        }
        scale
    }
}

/// Eight bits; yields 1.
struct Bytes<'a>(Row<'a>);

impl Kernel for Bytes<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        const MOST: f32 = 127.0;
        let mut row = self.0;
        let (place, rows) = (row.place, row.rows);
        for (x, words, sums) in row.groups(GROUP / 4) {
            let (top, probe) = greatest(simd, x);
            let inverse = MOST / top;
            // As with sixteen bits.
            let nothing = probe.is_nan() || !inverse.is_finite();
            let (inverse, scale) = if nothing { (0.0, probe) } else { (inverse, top / MOST) };
            let mut codes = [0; GROUP];
            let mut halves = [0; 2];
            let vectors = x.as_chunks::<LANES>().0.iter().zip(codes.as_chunks_mut().0);
            for ((x, codes), sum) in vectors.zip(&mut halves) {
                let x = if nothing { simd.splat(0.0) } else { simd.load(x) };
                let rounded = simd.to_int(simd.mul(x, simd.splat(inverse)));
                simd.store_bytes(rounded, codes);
                *sum = sum_of(simd, rounded);
            }
            for (words, [a, b, c, d]) in words.chunks_exact_mut(rows).zip(codes.as_chunks().0) {
                words[place] = u32::from_le_bytes([*a, *c, *b, *d]);
            }
            let whole = halves[0] + halves[1];
            *sums = Sums { whole, halves, scale, value: whole as f32 * scale };
        }
        1.0
    }
}

/// The greatest magnitude, and zero, or not a number where some input is not finite.
#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn greatest<S: Simd>(simd: S, x: &[f32]) -> (f32, f32) {
    let (mut top, mut probe) = (simd.splat(0.0), simd.splat(0.0));
    for x in x.as_chunks::<LANES>().0 {
        let x = simd.load(x);
        top = simd.max(simd.max(x, simd.mul(x, simd.splat(-1.0))), top);
        probe = simd.fma(x, simd.splat(0.0), probe);
    }
    (simd.greatest(top), simd.sum(probe))
}

/// Sixteen integers below 2^15 add up exactly in any arithmetic.
#[expect(clippy::inline_always, reason = "part of a kernel")]
#[expect(clippy::cast_possible_truncation, reason = "a sum of sixteen codes")]
#[inline(always)]
fn sum_of<S: Simd>(simd: S, codes: S::I) -> i32 {
    simd.sum(simd.to_float(codes)) as i32
}
