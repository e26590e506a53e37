//! Attention over paged keys and values.
//!
//! The cache is cut into pages of sixteen positions, and a sequence owns a list of them. Keys lie with sixteen positions
//! side by side, so that a score is summed in one lane over the head's dimensions and lanes are never mixed; values lie
//! position by position. A query walks the positions in blocks of 64 that begin at multiples of 64, with the running
//! maximum and sum of online softmax (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135). What a
//! query reads and in which order depends on its position alone, so decoding, any chunking of a prompt, and recomputation
//! give the same bits. Keys and values are kept as `f32`, `f16` or 8-bit codes, and widened where they are read: `cache.rs` says
//! how they lie there. Products with codes are summed up a group at a time before they are scaled.

mod cache;
mod tile;
mod write;

use std::{marker::PhantomData, ops::Range};

use candle_core::{
    CpuStorage, CustomOp3, DType, Layout, Result, Shape, WithDType, backend::BackendStorage,
};
use half::f16;

use super::{
    dense::{F16, F32, Number, bytes_of},
    elementwise::Angles,
    pool::{Disjoint, Pool},
    simd::Tier,
    slice_of,
};

use cache::{Codes, Kept};
use tile::{Cache, Tile};

pub use cache::{KvType, PAGE};
pub use write::{Half, Write};

/// Rows of one task.
const ROW_BLOCK: usize = 16;

/// The shape of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Heads of queries.
    pub queries: usize,
    /// Heads of keys and of values; each serves `queries / keys` heads of queries in turn.
    pub keys: usize,
    /// Width of a head.
    pub dim: usize,
    /// A query sees so many positions, its own included; `None` is all (Mistral, arXiv 2310.06825).
    pub window: Option<usize>,
}

impl Heads {
    /// Width of a row of `[queries, keys, values]`.
    pub fn width(self) -> usize {
        (self.queries + 2 * self.keys) * self.dim
    }
}

/// Consecutive rows of one sequence, at consecutive positions.
#[derive(Clone, Debug)]
pub struct SequenceRows<'a> {
    /// Rows of the step.
    pub rows: Range<usize>,
    /// Position of the first of them.
    pub position: usize,
    /// The sequence's pages, from position 0 to the last row's at least.
    pub pages: &'a [u32],
}

impl SequenceRows<'_> {
    /// Page and place in it of row `row` of the step.
    fn place(&self, row: usize) -> (usize, usize) {
        let position = self.position + (row - self.rows.start);
        (self.pages[position / PAGE] as usize, position % PAGE)
    }

    /// How long some of its rows take beside others: each sees about so many positions, which are read once more for all.
    fn length(&self, rows: &Range<usize>, window: Option<usize>) -> usize {
        let end = self.position + (rows.end - self.rows.start);
        end.min(window.unwrap_or(end).saturating_add(rows.len())) * (rows.len() + 1)
    }
}

/// Fails unless every row lies within its sequence's pages, and every page within the cache.
fn check(sequences: &[SequenceRows<'_>], rows: usize, pages: usize) -> Result<()> {
    for sequence in sequences {
        let end = sequence.position + sequence.rows.len();
        if sequence.rows.end > rows || end > sequence.pages.len() * PAGE {
            candle_core::bail!("attention: {sequence:?} is outside {rows} rows or its own pages");
        }
        if let Some(page) = sequence.pages.iter().find(|page| **page as usize >= pages) {
            candle_core::bail!("attention: page {page} of {pages}");
        }
    }
    Ok(())
}

/// Rows of a step's `[queries, keys, values]`.
fn rows_of(layout: &Layout, heads: Heads) -> Result<usize> {
    let (rows, width) = layout.shape().dims2()?;
    if width != heads.width() {
        candle_core::bail!("attention: rows of {width} where {heads:?} takes {}", heads.width());
    }
    Ok(rows)
}

/// `softmax(q K^T / sqrt(dim)) V`, causal, with queries turned by their angles: rows `[queries, keys, values]` to `[rows, query heads * dim]`.
#[derive(Debug)]
pub struct Attention<'a> {
    /// The instructions to use.
    pub tier: Tier,
    /// The threads to use.
    pub pool: &'a Pool,
    /// The shape of attention.
    pub heads: Heads,
    /// Of all rows.
    pub angles: Angles<'a>,
    /// All rows of the step; their keys and values are in the cache.
    pub sequences: &'a [SequenceRows<'a>],
}

impl CustomOp3 for Attention<'_> {
    fn name(&self) -> &'static str {
        "paged-attention"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        keys: &CpuStorage,
        keys_layout: &Layout,
        values: &CpuStorage,
        values_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let heads = self.heads;
        let rows = rows_of(layout, heads)?;
        let x = slice_of(x, layout)?;
        let (keys, values) = ((keys, keys_layout), (values, values_layout));
        let y = match BackendStorage::dtype(keys.0) {
            DType::F32 => self.attend::<f32, F32>(x, rows, numbers(keys)?, numbers(values)?)?,
            DType::F16 => self.attend::<f16, F16>(x, rows, numbers(keys)?, numbers(values)?)?,
            DType::U32 => self.attend::<u32, Codes>(x, rows, numbers(keys)?, numbers(values)?)?,
            other => candle_core::bail!("no cache of {other:?}"),
        };
        Ok((CpuStorage::F32(y), (rows, heads.queries * heads.dim).into()))
    }
}

/// All elements of a cache.
fn numbers<'a, T: WithDType>((storage, layout): (&'a CpuStorage, &Layout)) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<T>()?[start..end]),
        None => candle_core::bail!("the cache is one contiguous tensor"),
    }
}

impl Attention<'_> {
    fn attend<T: Number, D: Kept>(
        &self,
        x: &[f32],
        rows: usize,
        keys: &[T],
        values: &[T],
    ) -> Result<Vec<f32>> {
        let heads = self.heads;
        let of = |cache: &[T], head: usize| cache.len() / (heads.keys * head);
        let pages = of(keys, heads.key_head(D::KIND)).min(of(values, heads.value_head(D::KIND)));
        check(self.sequences, rows, pages)?;
        self.angles.check(rows, heads.dim)?;
        let stride = heads.queries * heads.dim;
        let mut y = vec![0.0; rows * stride];
        let mut tasks = Vec::new();
        for sequence in self.sequences {
            for start in sequence.rows.clone().step_by(ROW_BLOCK) {
                let rows = start..sequence.rows.end.min(start + ROW_BLOCK);
                tasks.extend((0..heads.keys).map(|head| (sequence, rows.clone(), head)));
            }
        }
        // A few rows of a long text may take as long as all others together.
        tasks.sort_by_key(|(sequence, rows, _)| sequence.length(rows, heads.window));
        let (keys, values) = (bytes_of(keys), bytes_of(values));
        let out = Disjoint::new(&mut y);
        self.pool.run_each(tasks.len(), |task| {
            let (sequence, rows, head) = &tasks[task];
            let (rows, head) = (rows.clone(), *head);
            let cache = Cache::<D> { keys, values, kind: PhantomData };
            let mut tile = Tile { heads, x, cache, sequence, rows, head, queries: Vec::new() };
            tile.turn(&self.angles);
            let group = heads.queries / heads.keys;
            let answers = self.tier.run(&tile);
            for (index, answer) in answers.chunks_exact(heads.padded_dim()).enumerate() {
                let (row, query) = (tile.rows.start + index / group, head * group + index % group);
                let at = row * stride + query * heads.dim;
                // SAFETY: a row's query heads of one key head belong to this task alone.
                let out = unsafe { out.part(at..at + heads.dim) };
                out.copy_from_slice(&answer[..heads.dim]);
            }
        });
        Ok(y)
    }
}

#[cfg(test)]
mod tests;
