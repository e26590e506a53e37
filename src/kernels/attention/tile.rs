//! What a few rows of a sequence see of one key head: scores, online softmax and sums of values, block after block.

use std::{marker::PhantomData, ops::Range};

use super::{
    Heads, PAGE, SequenceRows,
    cache::{GROUP, Kept, scales},
};
use crate::kernels::{
    elementwise::Angles,
    simd::{Kernel, LANES, Simd, prefetch},
};

/// Pages and positions of one block of the softmax.
const BLOCK_PAGES: usize = 4;
const BLOCK: usize = BLOCK_PAGES * PAGE;

/// Keys and values of type `D`.
pub(super) struct Cache<'a, D> {
    pub(super) keys: &'a [u8],
    pub(super) values: &'a [u8],
    pub(super) kind: PhantomData<D>,
}

impl<D: Kept> Cache<'_, D> {
    /// The part of key head `head` in page `page`, where it takes `len` elements.
    #[inline]
    fn part(all: &[u8], (page, keys, head): (usize, usize, usize), len: usize) -> &[u8] {
        let bytes = len * D::KIND.elements().size_in_bytes();
        &all[(page * keys + head) * bytes..][..bytes]
    }
}

/// A few rows of one sequence and the query heads of one key head.
pub(super) struct Tile<'a, D> {
    pub(super) heads: Heads,
    pub(super) x: &'a [f32],
    pub(super) cache: Cache<'a, D>,
    pub(super) sequence: &'a SequenceRows<'a>,
    pub(super) rows: Range<usize>,
    pub(super) head: usize,
    /// Turned, and divided by the root of their dimension: `[rows * group, dim]`
    pub(super) queries: Vec<f32>,
}

/// Online softmax of one query.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    sum: f32,
}

impl<D> Tile<'_, D> {
    /// Query heads for each row.
    fn group(&self) -> usize {
        self.heads.queries / self.heads.keys
    }

    fn position(&self, query: usize) -> usize {
        self.sequence.position + (self.rows.start - self.sequence.rows.start) + query / self.group()
    }

    pub(super) fn turn(&mut self, angles: &Angles<'_>) {
        let Heads { dim, .. } = self.heads;
        let scale = 1.0 / (dim as f32).sqrt();
        self.queries = vec![0.0; self.rows.len() * self.group() * dim];
        for (index, turned) in self.queries.chunks_exact_mut(dim).enumerate() {
            let group = self.heads.queries / self.heads.keys;
            let (row, head) = (self.rows.start + index / group, self.head * group + index % group);
            let at = row * self.heads.width() + head * dim;
            angles.turn(row, &self.x[at..at + dim], turned);
            for query in turned {
                *query *= scale;
            }
        }
    }

    fn query(&self, query: usize) -> &[f32] {
        &self.queries[query * self.heads.dim..(query + 1) * self.heads.dim]
    }

    /// Positions that a query sees.
    fn visible(&self, query: usize) -> Range<usize> {
        let end = self.position(query) + 1;
        end.saturating_sub(self.heads.window.unwrap_or(end))..end
    }

    /// The page of block `block`, `page`; where the sequence has none, another of its pages, whose scores are masked.
    fn page(&self, block: usize, page: usize) -> usize {
        let pages = self.sequence.pages;
        pages[(block * BLOCK_PAGES + page).min(pages.len() - 1)] as usize
    }
}

#[expect(clippy::inline_always, reason = "compiled once per tier")]
impl<D: Kept> Kernel for &Tile<'_, D> {
    /// `[rows * group, padded dim]`
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Vec<f32> {
        let queries = self.rows.len() * self.group();
        let padded = self.heads.padded_dim();
        let mut answers = vec![0.0; queries * padded];
        let mut states = vec![Running { max: f32::NEG_INFINITY, sum: 0.0 }; queries];
        let blocks = self.visible(0).start / BLOCK..self.visible(queries - 1).end.div_ceil(BLOCK);
        for block in blocks {
            let positions = block * BLOCK..(block + 1) * BLOCK;
            let sees = |query: &usize| {
                let visible = self.visible(*query);
                visible.start < positions.end && positions.start < visible.end
            };
            // Later rows see later positions, so the queries that see a block are consecutive.
            let Some(first) = (0..queries).find(sees) else { continue };
            let end = (first..queries).rfind(sees).map_or(first, |last| last + 1);
            // They come while scores are computed: a sequence's cache is in no processor's.
            (0..BLOCK_PAGES).for_each(|page| prefetch(self.values(block, page)));
            let mut query = first;
            while query < end {
                let left = end - query;
                let (states, answers) = (&mut states[query..], &mut answers[query * padded..]);
                if left >= 6 && S::ACCUMULATORS >= 6 {
                    self.block::<S, 6>(simd, block, query, (states, answers));
                    query += 6;
                } else if left >= 3 {
                    self.block::<S, 3>(simd, block, query, (states, answers));
                    query += 3;
                } else {
                    self.block::<S, 1>(simd, block, query, (states, answers));
                    query += 1;
                }
            }
        }
        for (answer, state) in answers.chunks_exact_mut(padded).zip(&states) {
            for value in answer {
                *value /= state.sum;
            }
        }
        answers
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl<D: Kept> Tile<'_, D> {
    /// The keys `[dim, 16]` of this head in a page of a block, and their scales.
    #[inline(always)]
    fn keys(&self, block: usize, page: usize) -> &[u8] {
        let place = (self.page(block, page), self.heads.keys, self.head);
        Cache::<D>::part(self.cache.keys, place, self.heads.key_head(D::KIND))
    }

    /// The values `[16, padded dim]` of this head in a page of a block, and their scales.
    #[inline(always)]
    fn values(&self, block: usize, page: usize) -> &[u8] {
        let place = (self.page(block, page), self.heads.keys, self.head);
        Cache::<D>::part(self.cache.values, place, self.heads.value_head(D::KIND))
    }

    /// Whether queries `first` to `first + count` see all of a block.
    fn see_all(&self, block: usize, first: usize, count: usize) -> bool {
        let (early, late) = (self.visible(first), self.visible(first + count - 1));
        late.start <= block * BLOCK && (block + 1) * BLOCK <= early.end
    }

    /// Takes one block of positions into the answers of queries `first` to `first + Q`.
    #[inline(always)]
    fn block<S: Simd, const Q: usize>(
        &self,
        simd: S,
        block: usize,
        first: usize,
        (states, answers): (&mut [Running], &mut [f32]),
    ) {
        let scores = self.scores::<S, Q>(simd, block, first);
        let mut weights = [[0.0; BLOCK]; Q];
        let padded = self.heads.padded_dim();
        let whole = self.see_all(block, first, Q);
        for (q, scores) in scores.into_iter().enumerate() {
            let visible = self.visible(first + q);
            let state = &mut states[q];
            let out = weights[q].as_chunks_mut::<PAGE>().0;
            // What is seen as a whole needs no masks; the arithmetic is the same.
            let (max, sum) = if whole {
                soften::<S, true>(simd, &scores, &[u16::MAX; BLOCK_PAGES], state.max, out)
            } else {
                let keep = std::array::from_fn(|page| lanes(&visible, block * BLOCK + page * PAGE));
                soften::<S, false>(simd, &scores, &keep, state.max, out)
            };
            let before = *state;
            if before.max >= max {
                // It is not less, so it is the same: e^0 is 1, and times 1 nothing changes. (Of infinities, whose difference
                // is none, nothing is left that could change: their sum is no number.)
                *state = Running { max, sum: before.sum + sum };
                continue;
            }
            // The first block finds nothing to rescale; exp(-inf) would not be zero here.
            let first = before.max == f32::NEG_INFINITY;
            let fade = if first { 0.0 } else { exp_one(simd, before.max - max) };
            *state = Running { max, sum: before.sum * fade + sum };
            for value in &mut answers[q * padded..(q + 1) * padded] {
                *value *= fade;
            }
        }
        self.gather::<S, Q>(simd, block, first, (&weights, answers));
    }

    /// `q · K^T` for the 64 positions of a block, unmasked.
    #[inline(always)]
    fn scores<S: Simd, const Q: usize>(
        &self,
        simd: S,
        block: usize,
        first: usize,
    ) -> [[S::F; BLOCK_PAGES]; Q] {
        let mut scores = [[simd.splat(0.0); BLOCK_PAGES]; Q];
        if Q * BLOCK_PAGES <= S::ACCUMULATORS {
            self.scores_of::<S, Q, BLOCK_PAGES>(simd, (block, 0), first, &mut scores);
        } else {
            for page in 0..BLOCK_PAGES {
                self.scores_of::<S, Q, 1>(simd, (block, page), first, &mut scores);
            }
        }
        scores
    }

    /// The same for `P` pages of the block from `page` on.
    #[expect(clippy::needless_range_loop, reason = "a dimension is a place in queries and in keys")]
    #[inline(always)]
    fn scores_of<S: Simd, const Q: usize, const P: usize>(
        &self,
        simd: S,
        (block, page): (usize, usize),
        first: usize,
        scores: &mut [[S::F; BLOCK_PAGES]; Q],
    ) {
        let Heads { dim, .. } = self.heads;
        let (row, unscaled) = (PAGE * D::WIDTH, unscaled::<D>(dim));
        let heads: [&[u8]; P] = std::array::from_fn(|own| self.keys(block, page + own));
        // Cut to one length, so that the loop below needs no checks.
        let keys = heads.map(|head| &head[..dim * row]);
        let queries: [&[f32]; Q] = std::array::from_fn(|q| &self.query(first + q)[..dim]);
        let group = if D::SCALED { GROUP } else { dim.max(1) };
        for from in (0..dim).step_by(group) {
            let mut acc = [[simd.splat(0.0); P]; Q];
            for d in from..dim.min(from + group) {
                let own = d * row..(d + 1) * row;
                let mut key = [simd.splat(0.0); P];
                for p in 0..P {
                    key[p] = D::widen(simd, &keys[p][own.clone()]);
                }
                for q in 0..Q {
                    let query = simd.splat(queries[q][d]);
                    for p in 0..P {
                        acc[q][p] = simd.fma(query, key[p], acc[q][p]);
                    }
                }
            }
            for p in 0..P {
                if D::SCALED {
                    let scale = scales(simd, heads[p], unscaled, from / GROUP);
                    for q in 0..Q {
                        let score = &mut scores[q][page + p];
                        *score = simd.fma(acc[q][p], scale, *score);
                    }
                } else {
                    for q in 0..Q {
                        scores[q][page + p] = acc[q][p];
                    }
                }
            }
        }
    }

    /// `answers += weights V`, position after position.
    #[inline(always)]
    fn gather<S: Simd, const Q: usize>(
        &self,
        simd: S,
        block: usize,
        first: usize,
        (weights, answers): (&[[f32; BLOCK]; Q], &mut [f32]),
    ) {
        let padded = self.heads.padded_dim();
        if !D::SCALED {
            self.gather_from::<S, Q>(simd, (block, 0..padded), first, (weights, answers));
            return;
        }
        for group in 0..self.heads.dim.div_ceil(GROUP) {
            let scaled = self.scaled::<S, Q>(simd, (block, group), weights);
            let dims = group * GROUP..padded.min((group + 1) * GROUP);
            self.gather_from::<S, Q>(simd, (block, dims), first, (&scaled, answers));
        }
    }

    /// Weights times the scales of a group of values. Where a position holds none that is seen, anything.
    #[inline(always)]
    fn scaled<S: Simd, const Q: usize>(
        &self,
        simd: S,
        (block, group): (usize, usize),
        weights: &[[f32; BLOCK]; Q],
    ) -> [[f32; BLOCK]; Q] {
        let mut scaled = [[0.0; BLOCK]; Q];
        let unscaled = unscaled::<D>(self.heads.padded_dim());
        for page in 0..BLOCK_PAGES {
            let scale = scales(simd, self.values(block, page), unscaled, group);
            for q in 0..Q {
                let weight = simd.load(&weights[q].as_chunks().0[page]);
                let scaled = &mut scaled[q].as_chunks_mut().0[page];
                simd.store(simd.mul(weight, scale), scaled);
            }
        }
        scaled
    }

    /// `answers += weights V` for some dimensions.
    #[inline(always)]
    fn gather_from<S: Simd, const Q: usize>(
        &self,
        simd: S,
        (block, dims): (usize, Range<usize>),
        first: usize,
        (weights, answers): (&[[f32; BLOCK]; Q], &mut [f32]),
    ) {
        let mut at = dims.start;
        while at < dims.end {
            let left = dims.end - at;
            if !D::SCALED && left >= 4 * LANES && S::ACCUMULATORS >= 24 {
                self.gather_part::<S, Q, 4>(simd, (block, at), first, (weights, answers));
                at += 4 * LANES;
            } else if D::SCALED && left >= 2 * LANES && S::ACCUMULATORS >= 12 {
                self.gather_part::<S, Q, 2>(simd, (block, at), first, (weights, answers));
                at += 2 * LANES;
            } else {
                self.gather_part::<S, Q, 1>(simd, (block, at), first, (weights, answers));
                at += LANES;
            }
        }
    }

    /// The same for `V` vectors of dimensions from `at` on.
    #[inline(always)]
    fn gather_part<S: Simd, const Q: usize, const V: usize>(
        &self,
        simd: S,
        (block, at): (usize, usize),
        first: usize,
        (weights, answers): (&[[f32; BLOCK]; Q], &mut [f32]),
    ) {
        let padded = self.heads.padded_dim();
        // Positions beyond the last query's own may hold another sequence's old values: they are not read. Those that a
        // query does not see are left out of its sum: times zero, a value that is no number would still be none.
        let visible: [Range<usize>; Q] = std::array::from_fn(|q| self.visible(first + q));
        let end = visible[Q - 1].end.min((block + 1) * BLOCK);
        let all = visible[Q - 1].start..visible[0].end;
        let mut acc = [[simd.splat(0.0); V]; Q];
        for q in 0..Q {
            let own = answers[q * padded + at..][..V * LANES].as_chunks::<LANES>().0;
            for v in 0..V {
                acc[q][v] = simd.load(&own[v]);
            }
        }
        let (row, own) = (padded * D::WIDTH, at * D::WIDTH..(at + V * LANES) * D::WIDTH);
        for page in 0..BLOCK_PAGES {
            let start = block * BLOCK + page * PAGE;
            if start >= end {
                break;
            }
            let count = PAGE.min(end - start);
            let values = &self.values(block, page)[..PAGE * row];
            let values = values.chunks_exact(row).take(count).enumerate();
            if all.start <= start && start + PAGE <= all.end {
                let weights: [&[f32; PAGE]; Q] =
                    std::array::from_fn(|q| &weights[q].as_chunks().0[page]);
                for (place, values) in values {
                    let value = widened::<S, D, V>(simd, &values[own.clone()]);
                    for q in 0..Q {
                        let weight = simd.splat(weights[q][place]);
                        for v in 0..V {
                            acc[q][v] = simd.fma(weight, value[v], acc[q][v]);
                        }
                    }
                }
                continue;
            }
            for (place, values) in values {
                let value = widened::<S, D, V>(simd, &values[own.clone()]);
                for q in 0..Q {
                    if visible[q].contains(&(start + place)) {
                        let weight = simd.splat(weights[q][page * PAGE + place]);
                        for v in 0..V {
                            acc[q][v] = simd.fma(weight, value[v], acc[q][v]);
                        }
                    }
                }
            }
        }
        for q in 0..Q {
            let own = answers[q * padded + at..][..V * LANES].as_chunks_mut::<LANES>().0;
            for v in 0..V {
                simd.store(acc[q][v], &mut own[v]);
            }
        }
    }
}

/// The weights `e^(score - max)` of a block's positions into `out`. Yields the greatest score, of those before too, and the sum of
/// the weights, which is not a number where a score that is seen is none or infinite. `ALL` says that all are seen.
#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn soften<S: Simd, const ALL: bool>(
    simd: S,
    scores: &[S::F; BLOCK_PAGES],
    keep: &[u16; BLOCK_PAGES],
    before: f32,
    out: &mut [[f32; PAGE]],
) -> (f32, f32) {
    let mut masked = *scores;
    // Zero, or not a number.
    let mut sum = simd.splat(0.0);
    let mut max = simd.splat(f32::NEG_INFINITY);
    for page in 0..BLOCK_PAGES {
        let mut seen = scores[page];
        if !ALL {
            masked[page] = simd.select(keep[page], seen, simd.splat(f32::NEG_INFINITY));
            seen = simd.select(keep[page], seen, simd.splat(0.0));
        }
        max = simd.max(max, masked[page]);
        sum = simd.fma(seen, simd.splat(0.0), sum);
    }
    let max = before.max(simd.greatest(max));
    let shift = simd.splat(-max);
    for page in 0..BLOCK_PAGES {
        let mut weight = simd.exp(simd.add(masked[page], shift));
        if !ALL {
            weight = simd.select(keep[page], weight, simd.splat(0.0));
        }
        simd.store(weight, &mut out[page]);
        sum = simd.add(sum, weight);
    }
    (max, simd.sum(sum))
}

/// Bytes of a head in a page before its scales, where each position has `numbers` numbers.
fn unscaled<D: Kept>(numbers: usize) -> usize {
    D::KIND.unscaled(numbers) * D::KIND.elements().size_in_bytes()
}

/// `V` vectors of a cache's numbers.
#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn widened<S: Simd, D: Kept, const V: usize>(simd: S, numbers: &[u8]) -> [S::F; V] {
    let mut wide = [simd.splat(0.0); V];
    for (wide, own) in wide.iter_mut().zip(numbers.chunks_exact(LANES * D::WIDTH)) {
        *wide = D::widen(simd, own);
    }
    wide
}

/// The lanes of the page at `start` that are visible.
fn lanes(visible: &Range<usize>, start: usize) -> u16 {
    let from = visible.start.saturating_sub(start).min(PAGE);
    let to = visible.end.saturating_sub(start).min(PAGE);
    let below = |lane: usize| (1_u32 << lane) - 1;
    u16::try_from(below(to) & !below(from)).expect("sixteen lanes")
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn exp_one<S: Simd>(simd: S, x: f32) -> f32 {
    let mut out = [0.0; LANES];
    simd.store(simd.exp(simd.splat(x)), &mut out);
    out[0]
}
