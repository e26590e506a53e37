//! Puts keys and values into the cache.

use std::ops::Range;

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, backend::BackendStorage};
use half::{f16, slice::HalfFloatSliceExt};

use super::{
    Heads, PAGE, SequenceRows,
    cache::{GROUP, IN_WORD, KvType},
    check, rows_of,
};
use crate::kernels::{
    dense::Number,
    elementwise::Angles,
    pool::{Disjoint, Pool},
    slice_of,
};

/// The half of the cache that a [`Write`] fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Keys, of [`Heads::key_shape`].
    Keys,
    /// Values, of [`Heads::value_shape`].
    Values,
}

/// Where one half lies in a row `[queries, keys, values]` and in a page.
struct Lie {
    /// Its first number in a row.
    first: usize,
    /// Elements of a head in a page, and of those how many come before the scales.
    head: usize,
    unscaled: usize,
    /// Numbers from one position to the next, and from one dimension to the next.
    place: usize,
    dim: usize,
}

impl Half {
    fn lie(self, heads: Heads, kind: KvType) -> Lie {
        let Heads { queries, keys, dim, .. } = heads;
        let padded = heads.padded_dim();
        match self {
            Self::Keys => Lie {
                first: queries * dim,
                head: heads.key_head(kind),
                unscaled: kind.unscaled(dim),
                place: 1,
                dim: PAGE,
            },
            Self::Values => Lie {
                first: (queries + keys) * dim,
                head: heads.value_head(kind),
                unscaled: kind.unscaled(padded),
                place: padded,
                dim: 1,
            },
        }
    }
}

/// An element of a cache.
trait Element: Number {
    const KIND: KvType;
    const ZERO: Self;
    /// Puts the numbers of a position into their place among a head's; `room` is for as many.
    fn put(head: &mut [Self], numbers: &[f32], lie: &Lie, place: usize, room: &mut [Self]);
}

/// Puts numbers in their places.
fn spread<T: Copy>(head: &mut [T], numbers: &[T], lie: &Lie, place: usize) {
    let to = head[place * lie.place..].iter_mut().step_by(lie.dim);
    to.zip(numbers).for_each(|(to, number)| *to = *number);
}

impl Element for f32 {
    const KIND: KvType = KvType::F32;
    const ZERO: Self = 0.0;
    fn put(head: &mut [Self], numbers: &[f32], lie: &Lie, place: usize, _: &mut [Self]) {
        spread(head, numbers, lie, place);
    }
}

impl Element for f16 {
    const KIND: KvType = KvType::F16;
    const ZERO: Self = Self::ZERO;
    fn put(head: &mut [Self], numbers: &[f32], lie: &Lie, place: usize, room: &mut [Self]) {
        room.convert_from_f32_slice(numbers);
        spread(head, room, lie, place);
    }
}

/// Codes in words, and scales: each group is rounded to nearest by its own, which is that of its greatest magnitude.
impl Element for u32 {
    const KIND: KvType = KvType::Int8;
    const ZERO: Self = 0;
    #[expect(clippy::cast_possible_truncation, reason = "codes are in [-127, 127]")]
    fn put(head: &mut [Self], numbers: &[f32], lie: &Lie, place: usize, _: &mut [Self]) {
        const MOST: f32 = 127.0;
        // Added and taken away it leaves whole numbers, the nearest and of two the even one: the last place of such sums is 1.
        const WHOLE: f32 = 1.5 * (1 << 23) as f32;
        let (codes, scales) = head.split_at_mut(lie.unscaled);
        for (group, numbers) in numbers.chunks(GROUP).enumerate() {
            let top = numbers.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
            // Zero, or not a number where some number is none or infinite: what is seen of it must not be one either.
            let probe: f32 = numbers.iter().map(|x| x * 0.0).sum();
            let inverse = MOST / top;
            let nothing = probe.is_nan() || !inverse.is_finite();
            let (inverse, scale) = if nothing { (0.0, probe) } else { (inverse, top / MOST) };
            scales[group * PAGE + place] = scale.to_bits();
            for (dim, x) in (group * GROUP..).zip(numbers) {
                let code = if nothing { 0 } else { (x * inverse + WHOLE - WHOLE) as i8 };
                let at = place * lie.place + dim * lie.dim;
                // As bytes in memory, on a little-endian machine.
                let shift = at % IN_WORD * 8;
                let word = &mut codes[at / IN_WORD];
                *word = *word & !(0xff << shift) | Self::from(code.cast_unsigned()) << shift;
            }
        }
    }
}

/// Puts the keys, turned by their angles, or the values of a step's rows `[queries, keys, values]` into the cache.
///
/// In a cache of `f16` each number is rounded to the nearest; beyond 65,504 that is infinite, and rows that see it come out as
/// no numbers. Of codes a whole group comes out as none where one of its numbers was none.
///
/// Whatever does not fit is an error before the first number is written. It must not be a panic: that would poison the
/// tensor's lock, and no later step could use the cache.
#[derive(Debug)]
pub struct Write<'a> {
    /// Keys or values.
    pub half: Half,
    /// The threads to use.
    pub pool: &'a Pool,
    /// The shape of attention.
    pub heads: Heads,
    /// Of all rows.
    pub angles: Angles<'a>,
    /// All rows of the step.
    pub sequences: &'a [SequenceRows<'a>],
}

impl InplaceOp2 for Write<'_> {
    fn name(&self) -> &'static str {
        "write-cache"
    }

    fn cpu_fwd(
        &self,
        cache: &mut CpuStorage,
        cache_layout: &Layout,
        x: &CpuStorage,
        layout: &Layout,
    ) -> Result<()> {
        let heads = self.heads;
        let rows = rows_of(layout, heads)?;
        let x = slice_of(x, layout)?;
        let Some((start, end)) = cache_layout.contiguous_offsets() else {
            candle_core::bail!("the cache is one contiguous tensor")
        };
        match cache {
            CpuStorage::F32(cache) => self.put(&mut cache[start..end], x, rows),
            CpuStorage::F16(cache) => self.put(&mut cache[start..end], x, rows),
            CpuStorage::U32(cache) => self.put(&mut cache[start..end], x, rows),
            other => candle_core::bail!("no cache of {:?}", BackendStorage::dtype(other)),
        }
    }
}

impl Write<'_> {
    fn put<T: Element>(&self, cache: &mut [T], x: &[f32], rows: usize) -> Result<()> {
        let heads = self.heads;
        let lie = self.half.lie(heads, T::KIND);
        let length = heads.keys * lie.head;
        check(self.sequences, rows, cache.len() / length)?;
        self.angles.check(rows, heads.dim)?;
        let pages: Vec<_> = self.sequences.iter().flat_map(pages).collect();
        let mut written: Vec<_> = pages.iter().map(|(page, _, _)| *page).collect();
        written.sort_unstable();
        if let Some([page, _]) = written.array_windows().find(|[one, next]| one == next) {
            candle_core::bail!("page {page} is written for two places");
        }
        let cache = Disjoint::new(cache);
        let put = |task: usize| {
            let (page, place, rows) = &pages[task];
            // SAFETY: no two tasks have the same page.
            let page = unsafe { cache.part(page * length..(page + 1) * length) };
            self.put_in_page(page, (&lie, *place), rows.clone(), x);
        };
        // A few rows are written before other threads have heard of them.
        if rows < 4 * PAGE {
            (0..pages.len()).for_each(put);
        } else {
            self.pool.run(pages.len(), put);
        }
        Ok(())
    }

    /// Puts rows into places `place` and after of their page.
    fn put_in_page<T: Element>(
        &self,
        page: &mut [T],
        (lie, place): (&Lie, usize),
        rows: Range<usize>,
        x: &[f32],
    ) {
        let heads = self.heads;
        let (mut turned, mut room) = (vec![0.0; heads.dim], vec![T::ZERO; heads.dim]);
        for (place, row) in (place..).zip(rows) {
            let own = &x[row * heads.width() + lie.first..][..heads.keys * heads.dim];
            let own = own.chunks_exact(heads.dim).zip(page.chunks_exact_mut(lie.head));
            for (mut numbers, head) in own {
                if self.half == Half::Keys {
                    self.angles.turn(row, numbers, &mut turned);
                    numbers = &turned;
                }
                T::put(head, numbers, lie, place, &mut room);
            }
        }
    }
}

/// The pages that a sequence's rows are written to, each with the place of the first row and the rows.
fn pages(sequence: &SequenceRows<'_>) -> impl Iterator<Item = (usize, usize, Range<usize>)> {
    let mut next = sequence.rows.start;
    std::iter::from_fn(move || {
        let row = next;
        let (page, place) = (row < sequence.rows.end).then(|| sequence.place(row))?;
        next = sequence.rows.end.min(row + PAGE - place);
        Some((page, place, row..next))
    })
}
