//! Products of codes with inputs rounded to sixteen bits, in integers.
//!
//! The products of each group of 32 inputs are summed exactly and then scaled by the weights' scale of the group, and the sum
//! of all groups, added up in their order, by the row's: `x · w = d_x * sum over groups of (d_w * sum(code * q) + offset *
//! sum(q))`. No sum of a group reaches 2^28.

use std::marker::PhantomData;

use super::{
    super::{
        quantize::{Sums, Tile},
        simd::{Kernel, LANES, Simd, Tier},
    },
    COLUMNS, Encoding, GROUP, Panels,
    codes::{Affine, Bytes, Codes, Group, Nibbles, Scales, Super, Super16, Symmetric, group},
};

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
        let panel = self.panel(panel);
        match self.encoding {
            Encoding::Q4_0 => tier.run(Coded::<Symmetric, Nibbles<0>, R>::new(panel, x)),
            Encoding::Q4_1 => tier.run(Coded::<Affine, Nibbles<0>, R>::new(panel, x)),
            Encoding::Q5_0 => tier.run(Coded::<Symmetric, Nibbles<1>, R>::new(panel, x)),
            Encoding::Q5_1 => tier.run(Coded::<Affine, Nibbles<1>, R>::new(panel, x)),
            Encoding::Q8_0 => tier.run(Coded::<Symmetric, Bytes, R>::new(panel, x)),
            Encoding::Q4_K => tier.run(Coded::<Super, Nibbles<0>, R>::new(panel, x)),
            Encoding::Q5_K => tier.run(Coded::<Super, Nibbles<1>, R>::new(panel, x)),
            Encoding::Q6_K => tier.run(Coded::<Super16, Nibbles<2>, R>::new(panel, x)),
            Encoding::F32 | Encoding::F16 | Encoding::BF16 => {
                unreachable!("callers ask whether weights are codes")
            }
        }
    }
}

/// A panel of one encoding for one tile. Each encoding is a kernel, and a function, of its own.
struct Coded<'a, Q, C, const R: usize> {
    panel: &'a [u8],
    x: Tile<'a, R>,
    encoding: PhantomData<(Q, C)>,
}

impl<'a, Q, C, const R: usize> Coded<'a, Q, C, R> {
    fn new(panel: &'a [u8], x: Tile<'a, R>) -> Self {
        Self { panel, x, encoding: PhantomData }
    }
}

#[expect(clippy::inline_always, reason = "compiled once per tier")]
impl<Q: Scales, C: Codes, const R: usize> Kernel for Coded<'_, Q, C, R> {
    type Output = [[f32; COLUMNS]; R];

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> [[f32; COLUMNS]; R] {
        if R > S::TILE {
            unreachable!("tiles of a tier are at most so large");
        }
        let mut acc = [[simd.splat(0.0); 2]; R];
        let rows = self.x.sums.iter().zip(self.x.pairs.as_chunks::<{ GROUP / 2 }>().0);
        for (index, rows) in rows.enumerate() {
            let group = group::<Q, C>(self.panel, index);
            for run in 0..GROUP / Q::RUN {
                if S::SUMS == 2 {
                    Part::<2> { group, run, half: 0 }.add::<S, Q, C, R>(simd, rows, &mut acc);
                } else {
                    Part::<1> { group, run, half: 0 }.add::<S, Q, C, R>(simd, rows, &mut acc);
                    Part::<1> { group, run, half: 1 }.add::<S, Q, C, R>(simd, rows, &mut acc);
                }
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
    fn add<S: Simd, Q: Scales, C: Codes, const R: usize>(
        &self,
        simd: S,
        (sums, pairs): (&[Sums; R], &[[u32; R]; GROUP / 2]),
        acc: &mut [[S::F; 2]; R],
    ) {
        let Self { group, run, half } = *self;
        let dots = self.dots::<S, Q, C, R>(simd, sums, pairs);
        for h in 0..H {
            let (column, from) = ((half + h) * LANES, (group.head, group.scales));
            let (scale, offset) = Q::read(simd, from, column, run, C::ZERO);
            for r in 0..R {
                let acc = &mut acc[r][half + h];
                *acc = simd.fma(simd.to_float(dots[r][h]), scale, *acc);
                if Q::MINIMUM {
                    *acc = simd.fma(
                        offset,
                        simd.to_float(simd.splat_int(sum::<Q>(&sums[r], run))),
                        *acc,
                    );
                }
            }
        }
    }

    /// `sum((code - zero) * x[r])`, where the zero is 0 for codes that have a minimum.
    #[inline(always)]
    fn dots<S: Simd, Q: Scales, C: Codes, const R: usize>(
        &self,
        simd: S,
        sums: &[Sums; R],
        pairs: &[[u32; R]; GROUP / 2],
    ) -> [[S::I; H]; R] {
        // A single chain of a few rows would wait for itself: integers add up to the same in any order.
        let chains = if R * H <= 4 { 2 } else { 1 };
        let mut dots = [[[simd.splat_int(0); H]; R]; 2];
        if !Q::MINIMUM {
            for r in 0..R {
                let sum = simd.splat_int(sum::<Q>(&sums[r], self.run));
                dots[0][r] = [simd.negated_shift(sum, C::ZERO.ilog2()); H];
            }
        }
        for octet in self.run * Q::RUN / 8..(self.run + 1) * Q::RUN / 8 {
            let mut codes = [[simd.splat_int(0); 4]; H];
            for (h, codes) in codes.iter_mut().enumerate() {
                *codes = C::pairs(simd, self.group.codes, octet, (self.half + h) * LANES);
            }
            for pair in 0..4 {
                for r in 0..R {
                    let x = simd.splat_int(pairs[octet * 4 + pair][r].cast_signed());
                    for h in 0..H {
                        let dots = &mut dots[pair % chains][r][h];
                        *dots = simd.dot(*dots, codes[h][pair], x);
                    }
                }
            }
        }
        let [mut sums, others] = dots;
        if chains == 2 {
            for (sum, other) in sums.as_flattened_mut().iter_mut().zip(others.as_flattened()) {
                *sum = simd.add_int(*sum, *other);
            }
        }
        sums
    }
}

/// Sum of the codes of run `run` of a group.
#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn sum<Q: Scales>(sums: &Sums, run: usize) -> i32 {
    if Q::RUN == GROUP { sums.whole } else { sums.halves[run] }
}
