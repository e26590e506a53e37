//! Products of codes with rounded inputs, in integers.
//!
//! The products of each group of 32 inputs are summed exactly and then scaled by the group's scales, and the sum of all
//! groups, added up in their order, by the row's: `x · w = d_x * sum over groups of (d_w * d_g * sum(code * q) + offset * d_g *
//! sum(q))`, where either `d_x` or all `d_g` are 1. No sum of a group reaches 2^28.

use std::marker::PhantomData;

use super::{
    super::{
        quantize::{Bits, Sums, Tile},
        simd::{Kernel, LANES, Simd, Tier},
    },
    COLUMNS, Encoding, GROUP, Panels,
    codes::{Affine, Bytes, Codes, Group, Nibbles, Scales, Super, Super16, Symmetric, group},
};

/// Sums of a few rows for each of their outputs: of either half of the octets.
const CHAINS: usize = 2;

impl Panels {
    /// `x · W^T` for the 32 outputs of `panel` and the `R` rows of a tile.
    ///
    /// # Panics
    /// Where the weights are not codes.
    pub(in super::super) fn dots<const R: usize>(
        &self,
        tier: Tier,
        panel: usize,
        x: Tile<'_, R>,
    ) -> [[f32; COLUMNS]; R] {
        match x.bits {
            Bits::Eight => self.dots_of::<Quads, R>(tier, panel, x),
            Bits::Sixteen => self.dots_of::<Pairs, R>(tier, panel, x),
        }
    }

    fn dots_of<X: Inputs, const R: usize>(
        &self,
        tier: Tier,
        panel: usize,
        x: Tile<'_, R>,
    ) -> [[f32; COLUMNS]; R] {
        let panel = self.panel(panel);
        match self.encoding {
            Encoding::Q4_0 => tier.run(Coded::<X, Symmetric, Nibbles<0>, R>::new(panel, x)),
            Encoding::Q4_1 => tier.run(Coded::<X, Affine, Nibbles<0>, R>::new(panel, x)),
            Encoding::Q5_0 => tier.run(Coded::<X, Symmetric, Nibbles<1>, R>::new(panel, x)),
            Encoding::Q5_1 => tier.run(Coded::<X, Affine, Nibbles<1>, R>::new(panel, x)),
            Encoding::Q8_0 => tier.run(Coded::<X, Symmetric, Bytes, R>::new(panel, x)),
            Encoding::Q4_K => tier.run(Coded::<X, Super, Nibbles<0>, R>::new(panel, x)),
            Encoding::Q5_K => tier.run(Coded::<X, Super, Nibbles<1>, R>::new(panel, x)),
            Encoding::Q6_K => tier.run(Coded::<X, Super16, Nibbles<2>, R>::new(panel, x)),
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

/// A panel of one encoding for one tile. Each encoding is a kernel, and a function, of its own.
struct Coded<'a, X, Q, C, const R: usize> {
    panel: &'a [u8],
    x: Tile<'a, R>,
    encoding: PhantomData<(X, Q, C)>,
}

impl<'a, X, Q, C, const R: usize> Coded<'a, X, Q, C, R> {
    fn new(panel: &'a [u8], x: Tile<'a, R>) -> Self {
        Self { panel, x, encoding: PhantomData }
    }
}

#[expect(clippy::inline_always, reason = "compiled once per tier")]
impl<X: Inputs, Q: Scales, C: Codes, const R: usize> Kernel for Coded<'_, X, Q, C, R> {
    type Output = [[f32; COLUMNS]; R];

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> [[f32; COLUMNS]; R] {
        if R > S::TILE {
            unreachable!("tiles of a tier are at most so large");
        }
        let mut acc = [[simd.splat(0.0); 2]; R];
        let rows = self.x.sums.iter().zip(self.x.words.chunks_exact(GROUP / X::IN_WORD));
        for (index, rows) in rows.enumerate() {
            let group = group::<Q, C>(self.panel, index);
            // Written out, so that where codes lie is known when this is compiled.
            add::<X, S, Q, C, R>(simd, (group, 0), rows, &mut acc);
            if Q::RUN < GROUP {
                add::<X, S, Q, C, R>(simd, (group, 1), rows, &mut acc);
            }
        }
        let mut sums = [[0.0; COLUMNS]; R];
        for ((sums, acc), scale) in sums.iter_mut().zip(acc).zip(self.x.scales) {
            let [left, right] = sums.as_chunks_mut::<LANES>().0 else { unreachable!("two halves") };
            let scale = simd.splat(*scale);
            simd.store(simd.mul(acc[0], scale), left);
            simd.store(simd.mul(acc[1], scale), right);
        }
        sums
    }
}

/// Adds the products with the inputs of a group that share a scale: all, or those of run 0 or 1.
#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn add<X: Inputs, S: Simd, Q: Scales, C: Codes, const R: usize>(
    simd: S,
    (group, run): (Group<'_>, usize),
    rows: (&[Sums; R], &[[u32; R]]),
    acc: &mut [[S::F; 2]; R],
) {
    if S::SUMS == 2 {
        Part::<2> { group, run, half: 0 }.add::<X, S, Q, C, R>(simd, rows, acc);
    } else {
        Part::<1> { group, run, half: 0 }.add::<X, S, Q, C, R>(simd, rows, acc);
        Part::<1> { group, run, half: 1 }.add::<X, S, Q, C, R>(simd, rows, acc);
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
        acc: &mut [[S::F; 2]; R],
    ) {
        let Self { group, run, half } = *self;
        let dots = self.dots::<X, S, Q, C, R>(simd, sums, words);
        for h in 0..H {
            let (column, from) = ((half + h) * LANES, (group.head, group.scales));
            let (scale, offset) = Q::read(simd, from, column, run, C::ZERO);
            for r in 0..R {
                let acc = &mut acc[r][half + h];
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
        let octet = self.run * Q::RUN / 8;
        self.octet::<X, S, C, R>(simd, octet, words, &mut dots);
        self.octet::<X, S, C, R>(simd, octet + 1, words, &mut dots);
        if Q::RUN == GROUP {
            self.octet::<X, S, C, R>(simd, octet + 2, words, &mut dots);
            self.octet::<X, S, C, R>(simd, octet + 3, words, &mut dots);
        }
        let [mut sums, others] = dots;
        if Self::few::<R>() {
            for (sum, raised) in sums.as_flattened_mut().iter_mut().zip(others.as_flattened()) {
                *sum = simd.add_int(*sum, simd.shifted_down(*raised, C::RAISED));
            }
        }
        sums
    }

    /// Few sums are in two chains: a single one would wait for itself, and shifts would be most of the work. Integers add up to the
    /// same in any order, and the sums of raised codes are as many times too great.
    #[inline(always)]
    fn few<const R: usize>() -> bool {
        R * H <= 4
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
        let chains = if Self::few::<R>() { CHAINS } else { 1 };
        let mut codes = [[simd.splat_int(0); 4]; H];
        for (h, codes) in codes.iter_mut().enumerate() {
            let (own, column) = (self.group.codes, (self.half + h) * LANES);
            *codes = if Self::few::<R>() {
                X::raised::<S, C>(simd, own, octet, column)
            } else {
                X::codes::<S, C>(simd, own, octet, column)
            };
        }
        let in_octet = 8 / X::IN_WORD;
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
