//! Products of codes with rounded inputs, in integers.
//!
//! The products of each group of 32 inputs are summed exactly and then scaled by the group's scales, and the sum of all
//! groups, added up in their order, by the row's: `x · w = d_x * sum over groups of (d_w * d_g * sum(code * q) + offset * d_g *
//! sum(q))`, where either `d_x` or all `d_g` are 1. No sum of a group reaches 2^28.

use std::{marker::PhantomData, ops::Range};

use super::{
    super::{
        quantize::{Bits, Quantized, Sums, Tile, tiles},
        simd::{Kernel, LANES, Simd, Tier, prefetch},
    },
    COLUMNS, Encoding, GROUP, Panels,
    codes::{Affine, Bytes, Codes, Group, Nibbles, Scales, Super, Super16, Symmetric, group},
};

/// Sums of a few rows for each of their outputs: of either half of the octets.
const CHAINS: usize = 2;

impl Panels {
    /// `x · W^T` for the 32 outputs of `panel` and some rows, into `sums` of as many. `ask` is called with the rows of each tile
    /// before their products.
    ///
    /// # Panics
    /// Where the weights are not codes.
    pub(in super::super) fn products(
        &self,
        (tier, panel): (Tier, usize),
        (x, rows): (&Quantized, Range<usize>),
        sums: &mut [[f32; COLUMNS]],
        ask: impl Fn(Range<usize>),
    ) {
        for tile in tiles(rows.clone(), tier.tile_rows()) {
            ask(tile.clone());
            let sums = &mut sums[tile.start - rows.start..tile.end - rows.start];
            match tile.len() {
                1 => self.dots::<1>(tier, panel, x.tile(tile.start), sums),
                2 => self.dots::<2>(tier, panel, x.tile(tile.start), sums),
                3 => self.dots::<3>(tier, panel, x.tile(tile.start), sums),
                4 => self.dots::<4>(tier, panel, x.tile(tile.start), sums),
                8 => self.dots::<8>(tier, panel, x.tile(tile.start), sums),
                other => unreachable!("a tile of {other} rows"),
            }
        }
    }

    /// The products of one tile.
    fn dots<const R: usize>(
        &self,
        tier: Tier,
        panel: usize,
        x: Tile<'_, R>,
        sums: &mut [[f32; COLUMNS]],
    ) {
        let sums = sums.first_chunk_mut().expect("a sum for each row");
        match x.bits {
            Bits::Eight => self.dots_of::<Quads, R>(tier, panel, x, sums),
            Bits::Sixteen => self.dots_of::<Pairs, R>(tier, panel, x, sums),
        }
    }

    fn dots_of<X: Inputs, const R: usize>(
        &self,
        tier: Tier,
        panel: usize,
        x: Tile<'_, R>,
        sums: &mut [[f32; COLUMNS]; R],
    ) {
        let bytes = (self.panel(panel), self.panels_from(panel));
        macro_rules! run {
            ($scales:ty, $codes:ty) => {
                tier.run(Coded::<X, $scales, $codes, R>::new(bytes, x, sums))
            };
        }
        match self.encoding {
            Encoding::Q4_0 => run!(Symmetric, Nibbles<0>),
            Encoding::Q4_1 => run!(Affine, Nibbles<0>),
            Encoding::Q5_0 => run!(Symmetric, Nibbles<1>),
            Encoding::Q5_1 => run!(Affine, Nibbles<1>),
            Encoding::Q8_0 => run!(Symmetric, Bytes),
            Encoding::Q4_K => run!(Super, Nibbles<0>),
            Encoding::Q5_K => run!(Super, Nibbles<1>),
            Encoding::Q6_K => run!(Super16, Nibbles<2>),
            Encoding::F32 | Encoding::F16 | Encoding::BF16 => {
                unreachable!("callers ask whether weights are codes")
            }
        }
    }
}

/// How rounded inputs lie in words.
trait Inputs {
    /// In one word.
    const IN_WORD: usize;
    /// Whether each group has a scale.
    const SCALED: bool;
    /// Whether [`Self::dot`] sums in halves of lanes.
    const SHORT: bool = false;

    /// Codes of inputs `8 * octet` to `8 * octet + 7`, as many in a lane as inputs in a word; where that is four, in the
    /// first two vectors.
    fn codes<S: Simd, C: Codes>(simd: S, codes: &[u8], octet: usize, column: usize) -> [S::I; 4];

    /// The same, those of the octet's second half [raised](Codes::RAISED).
    fn raised<S: Simd, C: Codes>(simd: S, codes: &[u8], octet: usize, column: usize) -> [S::I; 4];

    /// Adds the products of codes with a word of inputs.
    fn dot<S: Simd>(simd: S, sums: S::I, codes: S::I, x: S::I) -> S::I;
}

/// Two of sixteen bits.
struct Pairs;
/// Four of eight bits.
struct Quads;

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl Inputs for Pairs {
    const IN_WORD: usize = 2;
    const SCALED: bool = false;
    #[inline(always)]
    fn codes<S: Simd, C: Codes>(simd: S, codes: &[u8], octet: usize, column: usize) -> [S::I; 4] {
        C::pairs(simd, codes, octet, column)
    }
    #[inline(always)]
    fn raised<S: Simd, C: Codes>(simd: S, codes: &[u8], octet: usize, column: usize) -> [S::I; 4] {
        C::raised_pairs(simd, codes, octet, column)
    }
    #[inline(always)]
    fn dot<S: Simd>(simd: S, sums: S::I, codes: S::I, x: S::I) -> S::I {
        simd.dot(sums, codes, x)
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl Inputs for Quads {
    const IN_WORD: usize = 4;
    const SCALED: bool = true;
    #[inline(always)]
    fn codes<S: Simd, C: Codes>(simd: S, codes: &[u8], octet: usize, column: usize) -> [S::I; 4] {
        let none = simd.splat_int(0);
        let quad = |half: usize| C::quad(simd, codes, octet * 2 + half, column);
        [quad(0), quad(1), none, none]
    }
    #[inline(always)]
    fn raised<S: Simd, C: Codes>(simd: S, codes: &[u8], octet: usize, column: usize) -> [S::I; 4] {
        let none = simd.splat_int(0);
        let [left, right] = C::raised_quads(simd, codes, octet, column);
        [left, right, none, none]
    }
    #[inline(always)]
    fn dot<S: Simd>(simd: S, sums: S::I, codes: S::I, x: S::I) -> S::I {
        simd.dot_bytes(sums, codes, x)
    }
}

/// Four of eight bits, whose products are summed in sixteen.
struct ShortQuads;

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl Inputs for ShortQuads {
    const IN_WORD: usize = Quads::IN_WORD;
    const SCALED: bool = Quads::SCALED;
    const SHORT: bool = true;
    #[inline(always)]
    fn codes<S: Simd, C: Codes>(simd: S, codes: &[u8], octet: usize, column: usize) -> [S::I; 4] {
        Quads::codes::<S, C>(simd, codes, octet, column)
    }
    #[inline(always)]
    fn raised<S: Simd, C: Codes>(simd: S, codes: &[u8], octet: usize, column: usize) -> [S::I; 4] {
        Quads::raised::<S, C>(simd, codes, octet, column)
    }
    #[inline(always)]
    fn dot<S: Simd>(simd: S, sums: S::I, codes: S::I, x: S::I) -> S::I {
        simd.dot_short(sums, codes, x)
    }
}

/// A panel of one encoding for one tile. Each encoding is a kernel, and a function, of its own.
struct Coded<'a, X, Q, C, const R: usize> {
    panel: &'a [u8],
    /// It, and what comes after it.
    ahead: &'a [u8],
    x: Tile<'a, R>,
    sums: &'a mut [[f32; COLUMNS]; R],
    encoding: PhantomData<(X, Q, C)>,
}

impl<'a, X, Q, C, const R: usize> Coded<'a, X, Q, C, R> {
    fn new(
        (panel, ahead): (&'a [u8], &'a [u8]),
        x: Tile<'a, R>,
        sums: &'a mut [[f32; COLUMNS]; R],
    ) -> Self {
        Self { panel, ahead, x, sums, encoding: PhantomData }
    }
}

#[expect(clippy::inline_always, reason = "compiled once per tier")]
impl<X: Inputs, Q: Scales, C: Codes, const R: usize> Kernel for Coded<'_, X, Q, C, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        if R > S::TILE {
            unreachable!("tiles of a tier are at most so large");
        }
        if 2 * R <= S::SUMS {
            self.halves::<S, 2>(simd, 0);
        } else {
            // One after the other from beginning to end, so that what both need is not kept in between: there are no registers for
            // it. It takes lines of memory in two goes, which fewer rows would wait for.
            self.halves::<S, 1>(simd, 0);
            self.halves::<S, 1>(simd, 1);
        }
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl<X: Inputs, Q: Scales, C: Codes, const R: usize> Coded<'_, X, Q, C, R> {
    /// The bytes of about group `index`, of this panel or those after it; none where there is none.
    #[inline(always)]
    fn stored(&self, index: usize) -> &[u8] {
        let length = Q::SCALES + C::BYTES + Q::HEAD / Q::GROUPS;
        let from = self.ahead.get(index * length..).unwrap_or_default();
        from.get(..length).unwrap_or_default()
    }

    /// The sums of `H` halves of the columns, from `half` on.
    #[inline(always)]
    fn halves<S: Simd, const H: usize>(&mut self, simd: S, half: usize) {
        let mut acc = [[simd.splat(0.0); H]; R];
        let rows = self.x.sums.iter().zip(self.x.words.chunks_exact(GROUP / X::IN_WORD));
        for (index, rows) in rows.enumerate() {
            let group = group::<Q, C>(self.panel, index);
            if S::AHEAD > 0 && half == 0 {
                // Both halves of it, where those come one after the other.
                prefetch(self.stored(index + S::AHEAD));
            }
            // Written out, so that where codes lie is known when this is compiled.
            Part { group, run: 0, half }.add::<X, S, Q, C, R>(simd, rows, &mut acc);
            if Q::RUN < GROUP {
                Part { group, run: 1, half }.add::<X, S, Q, C, R>(simd, rows, &mut acc);
            }
        }
        for ((sums, acc), scale) in self.sums.iter_mut().zip(acc).zip(self.x.scales) {
            let scale = simd.splat(*scale);
            for (h, acc) in acc.into_iter().enumerate() {
                let sums = &mut sums.as_chunks_mut().0[half + h];
                simd.store(simd.mul(acc, scale), sums);
            }
        }
    }
}

/// `H` halves of the columns, from `half` on, of the inputs of a group that share a scale.
struct Part<'a, const H: usize> {
    group: Group<'a>,
    run: usize,
    half: usize,
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl<const H: usize> Part<'_, H> {
    /// `acc[r] += x[r] · w`, but for the scale of the row.
    #[inline(always)]
    fn add<X: Inputs, S: Simd, Q: Scales, C: Codes, const R: usize>(
        &self,
        simd: S,
        (sums, words): (&[Sums; R], &[[u32; R]]),
        acc: &mut [[S::F; H]; R],
    ) {
        let Self { group, run, half } = *self;
        let dots = self.dots::<X, S, Q, C, R>(simd, sums, words);
        for h in 0..H {
            let (column, from) = ((half + h) * LANES, (group.head, group.scales));
            let (scale, offset) = Q::read(simd, from, column, run, C::ZERO);
            for r in 0..R {
                let acc = &mut acc[r][h];
                let scale =
                    if X::SCALED { simd.mul(scale, simd.splat(sums[r].scale)) } else { scale };
                *acc = simd.fma(simd.to_float(dots[r][h]), scale, *acc);
                if Q::MINIMUM {
                    *acc = simd.fma(offset, simd.splat(sums[r].value), *acc);
                }
            }
        }
    }

    /// `sum((code - zero) * x[r])`, where the zero is 0 for codes that have a minimum.
    #[inline(always)]
    fn dots<X: Inputs, S: Simd, Q: Scales, C: Codes, const R: usize>(
        &self,
        simd: S,
        sums: &[Sums; R],
        words: &[[u32; R]],
    ) -> [[S::I; H]; R] {
        // Cut to what it is, so that the loops below need no checks.
        let words = &words[..GROUP / X::IN_WORD];

        let mut dots = [[[simd.splat_int(0); H]; R]; CHAINS];
        if !Q::MINIMUM {
            for r in 0..R {
                let sum = simd.splat_int(sum::<Q>(&sums[r], self.run));
                dots[0][r] = [simd.negated_shift(sum, C::ZERO.ilog2()); H];
            }
        }
        if X::SCALED && S::SHORT_SUMS && C::SHORT_OCTETS > 0 {
            self.short_dots::<S, Q, C, R>(simd, words, &mut dots[0]);
            return dots[0];
        }
        let octet = self.run * Q::RUN / 8;
        self.octet::<X, S, C, R>(simd, octet, words, &mut dots);
        self.octet::<X, S, C, R>(simd, octet + 1, words, &mut dots);
        if Q::RUN == GROUP {
            self.octet::<X, S, C, R>(simd, octet + 2, words, &mut dots);
            self.octet::<X, S, C, R>(simd, octet + 3, words, &mut dots);
        }
        let [mut sums, others] = dots;
        if Self::few::<X, S, R>() {
            for (sum, raised) in sums.as_flattened_mut().iter_mut().zip(others.as_flattened()) {
                *sum = simd.add_int(*sum, simd.shifted_down(*raised, C::RAISED));
            }
        }
        sums
    }

    /// Adds the products of codes with bytes, first in sixteen bits and, before those are full, in 32.
    #[inline(always)]
    fn short_dots<S: Simd, Q: Scales, C: Codes, const R: usize>(
        &self,
        simd: S,
        words: &[[u32; R]],
        dots: &mut [[S::I; H]; R],
    ) {
        let none = [[[simd.splat_int(0); H]; R]; CHAINS];
        let octet = self.run * Q::RUN / 8;
        let mut short = none;
        self.octet::<ShortQuads, S, C, R>(simd, octet, words, &mut short);
        if C::SHORT_OCTETS < 2 {
            Self::settle(simd, &short, dots);
            short = none;
        }
        self.octet::<ShortQuads, S, C, R>(simd, octet + 1, words, &mut short);
        if Q::RUN == GROUP {
            if C::SHORT_OCTETS < 4 {
                Self::settle(simd, &short, dots);
                short = none;
            }
            self.octet::<ShortQuads, S, C, R>(simd, octet + 2, words, &mut short);
            if C::SHORT_OCTETS < 2 {
                Self::settle(simd, &short, dots);
                short = none;
            }
            self.octet::<ShortQuads, S, C, R>(simd, octet + 3, words, &mut short);
        }
        Self::settle(simd, &short, dots);
    }

    /// `dots += short`
    #[inline(always)]
    fn settle<S: Simd, const R: usize>(
        simd: S,
        short: &[[[S::I; H]; R]; CHAINS],
        dots: &mut [[S::I; H]; R],
    ) {
        for r in 0..R {
            for h in 0..H {
                dots[r][h] = simd.add_halves(dots[r][h], short[0][r][h]);
            }
        }
    }

    /// Few sums are in two chains: a single one would wait for itself, and shifts would be most of the work. Integers add up to the
    /// same in any order, and the sums of raised codes are as many times too great. Sixteen bits have no room for those.
    #[inline(always)]
    fn few<X: Inputs, S: Simd, const R: usize>() -> bool {
        R * H * S::REGISTERS <= 4 && !X::SHORT
    }

    /// The products with eight inputs.
    #[inline(always)]
    fn octet<X: Inputs, S: Simd, C: Codes, const R: usize>(
        &self,
        simd: S,
        octet: usize,
        words: &[[u32; R]],
        dots: &mut [[[S::I; H]; R]; CHAINS],
    ) {
        let chains = if Self::few::<X, S, R>() { CHAINS } else { 1 };
        let in_octet = 8 / X::IN_WORD;
        let mut codes = [[simd.splat_int(0); 4]; H];
        for (h, codes) in codes.iter_mut().enumerate() {
            let (own, column) = (self.group.codes, (self.half + h) * LANES);
            *codes = if Self::few::<X, S, R>() {
                X::raised::<S, C>(simd, own, octet, column)
            } else {
                X::codes::<S, C>(simd, own, octet, column)
            };
        }
        for word in 0..in_octet {
            for r in 0..R {
                let x = simd.splat_int(words[octet * in_octet + word][r].cast_signed());
                for h in 0..H {
                    let dots = &mut dots[word * chains / in_octet][r][h];
                    *dots = X::dot(simd, *dots, codes[h][word], x);
                }
            }
        }
    }
}

/// Sum of the codes of run `run` of a group.
#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn sum<Q: Scales>(sums: &Sums, run: usize) -> i32 {
    if Q::RUN == GROUP { sums.whole } else { sums.halves[run] }
}
