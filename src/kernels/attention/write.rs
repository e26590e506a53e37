//! Puts keys and values into the cache.

use std::ops::Range;

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, backend::BackendStorage};

use super::{Heads, PAGE, SequenceRows, check, rows_of};
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
    /// Numbers of one page.
    page: usize,
    /// From one head to the next within a page, from one position to the next, and from one dimension to the next.
    head: usize,
    place: usize,
    dim: usize,
}

impl Half {
    fn lie(self, heads: Heads) -> Lie {
        let Heads { queries, keys, dim, .. } = heads;
        let padded = heads.padded_dim();
        match self {
            Self::Keys => Lie {
                first: queries * dim,
                page: heads.key_page(),
                head: dim * PAGE,
                place: 1,
                dim: PAGE,
            },
            Self::Values => Lie {
                first: (queries + keys) * dim,
                page: heads.value_page(),
                head: PAGE * padded,
                place: padded,
                dim: 1,
            },
        }
    }
}

/// Puts the keys, turned by their angles, or the values of a step's rows `[queries, keys, values]` into the cache.
///
/// In a cache of `f16` each number is rounded to the nearest; beyond 65,504 that is infinite, and rows that see it come out as
/// no numbers.
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
            other => candle_core::bail!("no cache of {:?}", BackendStorage::dtype(other)),
        }
    }
}

impl Write<'_> {
    fn put<T: Number>(&self, cache: &mut [T], x: &[f32], rows: usize) -> Result<()> {
        let heads = self.heads;
        let lie = self.half.lie(heads);
        check(self.sequences, rows, cache.len() / lie.page)?;
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
            let page = unsafe { cache.part(page * lie.page..(page + 1) * lie.page) };
            self.put_in_page(page, *place, rows.clone(), x);
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
    fn put_in_page<T: Number>(&self, page: &mut [T], place: usize, rows: Range<usize>, x: &[f32]) {
        let heads = self.heads;
        let lie = self.half.lie(heads);
        let (mut turned, mut converted) = (vec![0.0; heads.dim], vec![T::ZERO; heads.dim]);
        for (place, row) in (place..).zip(rows) {
            let own = &x[row * heads.width() + lie.first..][..heads.keys * heads.dim];
            for (head, mut numbers) in own.chunks_exact(heads.dim).enumerate() {
                if self.half == Half::Keys {
                    self.angles.turn(row, numbers, &mut turned);
                    numbers = &turned;
                }
                T::convert(numbers, &mut converted);
                let to = page[head * lie.head + place * lie.place..].iter_mut();
                to.step_by(lie.dim).zip(&converted).for_each(|(to, number)| *to = *number);
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
