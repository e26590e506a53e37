//! Inputs rounded to sixteen bits, for products with codes.
//!
//! A row has one scale, that of its greatest magnitude. No number of a row is more than `sqrt(inputs)` times as large as their
//! root mean square, so that what rounding adds is at most `sqrt(inputs) / 2^16` of that: for the 576 and 1,536 inputs of
//! the default base some hundred times less than eight bits leave of it, whatever outliers there are. (Eight bits in groups
//! of 32, even with outliers kept, move perplexities of single tasks by two to four hundredths.) A row's codes depend on
//! that row alone.

use std::ops::Range;

use super::{
    pool::{Disjoint, Pool},
    simd::{Kernel, LANES, Simd, Tier},
};

/// Inputs whose codes are summed up.
pub(super) const GROUP: usize = 32;

/// Greatest code.
const MOST: f32 = 32_767.0;

/// Rows `[rows, inputs]` as 16-bit codes, in tiles of rows that are computed together.
#[derive(Debug)]
pub(super) struct Quantized {
    inputs: usize,
    rows: usize,
    /// Most rows of a tile.
    tile: usize,
    /// For each tile `[inputs / 2, rows of the tile]`, two neighbours in each.
    pairs: Vec<u32>,
    /// For each tile `[inputs / 32, rows of the tile]`.
    sums: Vec<Sums>,
    /// Value of code 1 in each row; not a number where an input is none.
    scales: Vec<f32>,
}

/// Sums of the codes of a group.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    /// Of all 32.
    pub(super) whole: i32,
    /// Of either half.
    pub(super) halves: [i32; 2],
}

/// `R` rows side by side.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a, const R: usize> {
    pub(super) pairs: &'a [[u32; R]],
    pub(super) sums: &'a [[Sums; R]],
    pub(super) scales: &'a [f32; R],
}

impl Quantized {
    /// Rounds `x [rows, inputs]`; inputs fill whole groups.
    pub(super) fn new(tier: Tier, pool: &Pool, x: &[f32], inputs: usize) -> Self {
        let rows = x.len() / inputs.max(1);
        let mut pairs = vec![0; x.len() / 2];
        let mut sums = vec![Sums::default(); x.len() / GROUP];
        let mut scales = vec![0.0; rows];
        let tile = tier.tile_rows();
        let tiles: Vec<_> = tiles(0..rows, tile).collect();
        let all = (Disjoint::new(&mut pairs), Disjoint::new(&mut sums), Disjoint::new(&mut scales));
        pool.run(tiles.len(), |index| {
            let rows = tiles[index].clone();
            let part = |per_row: usize| rows.start * per_row..rows.end * per_row;
            // SAFETY: tiles are disjoint, and each is one task.
            let pairs = unsafe { all.0.part(part(inputs / 2)) };
            // SAFETY: as above.
            let sums = unsafe { all.1.part(part(inputs / GROUP)) };
            // SAFETY: as above.
            let scales = unsafe { all.2.part(rows.clone()) };
            for (place, row) in rows.clone().enumerate() {
                let x = &x[row * inputs..(row + 1) * inputs];
                scales[place] = tier.run(Round { x, place, rows: rows.len(), pairs, sums });
            }
        });
        Self { inputs, rows, tile, pairs, sums, scales }
    }

    /// The tiles of some rows, which begin with a tile.
    pub(super) fn tiles(&self, rows: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        tiles(rows.start..rows.end.min(self.rows), self.tile)
    }

    /// The tile of `R` rows that begins at `row`.
    #[inline]
    pub(super) fn tile<const R: usize>(&self, row: usize) -> Tile<'_, R> {
        let part = |per_row: usize| row * per_row..(row + R) * per_row;
        Tile {
            pairs: self.pairs[part(self.inputs / 2)].as_chunks().0,
            sums: self.sums[part(self.inputs / GROUP)].as_chunks().0,
            scales: self.scales[row..].first_chunk().expect("callers take tiles as they are cut"),
        }
    }
}

/// Cuts rows into tiles: as large as they come, then halves.
fn tiles(rows: Range<usize>, largest: usize) -> impl Iterator<Item = Range<usize>> {
    let (mut first, mut size) = (rows.start, largest);
    std::iter::from_fn(move || {
        while first + size > rows.end {
            size /= 2;
            if size == 0 {
                return None;
            }
        }
        first += size;
        Some(first - size..first)
    })
    .fuse()
}

/// Rounds one row into its place in a tile of `rows`, and yields its scale.
struct Round<'a> {
    x: &'a [f32],
    place: usize,
    rows: usize,
    pairs: &'a mut [u32],
    sums: &'a mut [Sums],
}

#[expect(clippy::inline_always, reason = "compiled once per tier")]
impl Kernel for Round<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let Self { x, place, rows, pairs, sums } = self;
        let (top, probe) = greatest(simd, x);
        let inverse = MOST / top;
        if probe.is_nan() || !inverse.is_finite() {
            // Of zeros, and of magnitudes so small that they have no inverse, nothing is left. A row with an input that is
            // not finite must not come out as one that is: its scale is not a number.
            pairs.iter_mut().skip(place).step_by(rows).for_each(|pair| *pair = 0);
            sums.iter_mut().skip(place).step_by(rows).for_each(|sums| *sums = Sums::default());
            return probe;
        }
        let pairs = pairs.chunks_exact_mut(rows * GROUP / 2);
        let sums = sums.chunks_exact_mut(rows);
        for ((x, pairs), sums) in x.as_chunks::<GROUP>().0.iter().zip(pairs).zip(sums) {
            let (words, halves) = codes(simd, x, inverse);
            sums[place] = Sums { whole: halves[0] + halves[1], halves };
            for (pairs, word) in pairs.chunks_exact_mut(rows).zip(words) {
                pairs[place] = word;
            }
        }
        top / MOST
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

/// The codes of a group, two in each word, and the sum of either half.
#[expect(clippy::inline_always, reason = "part of a kernel")]
#[expect(clippy::cast_possible_truncation, reason = "a sum of sixteen codes")]
#[inline(always)]
fn codes<S: Simd>(simd: S, x: &[f32; GROUP], inverse: f32) -> ([u32; GROUP / 2], [i32; 2]) {
    let mut words = [0; GROUP / 2];
    let mut sums = [0; 2];
    let halves = x.as_chunks::<LANES>().0.iter().zip(words.as_chunks_mut().0);
    for ((x, words), sum) in halves.zip(&mut sums) {
        let rounded = simd.to_int(simd.mul(simd.load(x), simd.splat(inverse)));
        simd.store_shorts(rounded, words);
        // Sixteen integers below 2^15 add up exactly in any arithmetic.
        *sum = simd.sum(simd.to_float(rounded)) as i32;
    }
    (words, sums)
}
