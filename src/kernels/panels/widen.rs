//! Weights as the `f32` values that they stand for.

use std::ops::Range;

use super::{
    super::{
        dense::{Bf16, Dense, F16, F32},
        simd::{LANES, Simd},
    },
    COLUMNS, Encoding, GROUP, Layout, Panels,
    codes::{Affine, Bytes, Codes, Nibbles, Scales, Super, Super16, Symmetric, group},
};

/// What is done with weights that have been widened.
trait Take<S: Simd> {
    /// The weights of input `k` of 32 outputs, counted from the first that is widened.
    fn take(&mut self, simd: S, k: usize, w: [S::F; 2]);
}

/// Multiplies them by rows of inputs: `acc[r] += x[r][k] * w`.
struct Multiply<'a, S: Simd, const R: usize> {
    x: [&'a [f32]; R],
    acc: [[S::F; 2]; R],
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl<S: Simd, const R: usize> Take<S> for Multiply<'_, S, R> {
    #[inline(always)]
    fn take(&mut self, simd: S, k: usize, w: [S::F; 2]) {
        for r in 0..R {
            let x = simd.splat(self.x[r][k]);
            let acc = &mut self.acc[r];
            *acc = [simd.fma(x, w[0], acc[0]), simd.fma(x, w[1], acc[1])];
        }
    }
}

/// Keeps them for many rows to share.
struct Keep<'a>(&'a mut [[f32; COLUMNS]]);

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl<S: Simd> Take<S> for Keep<'_> {
    #[inline(always)]
    fn take(&mut self, simd: S, k: usize, w: [S::F; 2]) {
        let halves = self.0[k].as_chunks_mut::<LANES>().0;
        let [left, right] = halves else { unreachable!("two halves") };
        simd.store(w[0], left);
        simd.store(w[1], right);
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
impl Panels {
    /// `x[r] · W^T` for the 32 outputs of `panel` and `R` rows of inputs, in input order.
    #[inline(always)]
    pub(in super::super) fn accumulate<S: Simd, const R: usize>(
        &self,
        simd: S,
        panel: usize,
        x: [&[f32]; R],
    ) -> [[S::F; 2]; R] {
        let mut multiply = Multiply { x, acc: [[simd.splat(0.0); 2]; R] };
        self.take(simd, panel, 0..self.inputs, &mut multiply);
        multiply.acc
    }

    /// Widens inputs `inputs` (from a multiple of [`super::BLOCK`] on) of `panel` into one row of 32 columns each.
    ///
    /// The same numbers that [`Self::accumulate`] multiplies by, for many rows to share.
    #[inline(always)]
    pub(in super::super) fn widen<S: Simd>(
        &self,
        simd: S,
        panel: usize,
        inputs: Range<usize>,
        out: &mut [[f32; COLUMNS]],
    ) {
        self.take(simd, panel, inputs, &mut Keep(out));
    }

    #[inline(always)]
    fn take<S: Simd>(&self, simd: S, panel: usize, inputs: Range<usize>, take: &mut impl Take<S>) {
        let layout = Layout::of(self.encoding);
        let unit = layout.group() * layout.groups;
        let bytes = &self.panel(panel)[inputs.start / unit * layout.super_bytes()..];
        let count = inputs.len();
        match self.encoding {
            Encoding::F32 => dense::<S, F32>(simd, bytes, count, take),
            Encoding::F16 => dense::<S, F16>(simd, bytes, count, take),
            Encoding::BF16 => dense::<S, Bf16>(simd, bytes, count, take),
            Encoding::Q4_0 => coded::<S, Symmetric, Nibbles<0>>(simd, bytes, count, take),
            Encoding::Q4_1 => coded::<S, Affine, Nibbles<0>>(simd, bytes, count, take),
            Encoding::Q5_0 => coded::<S, Symmetric, Nibbles<1>>(simd, bytes, count, take),
            Encoding::Q5_1 => coded::<S, Affine, Nibbles<1>>(simd, bytes, count, take),
            Encoding::Q8_0 => coded::<S, Symmetric, Bytes>(simd, bytes, count, take),
            Encoding::Q4_K => coded::<S, Super, Nibbles<0>>(simd, bytes, count, take),
            Encoding::Q5_K => coded::<S, Super, Nibbles<1>>(simd, bytes, count, take),
            Encoding::Q6_K => coded::<S, Super16, Nibbles<2>>(simd, bytes, count, take),
        }
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn dense<S: Simd, D: Dense>(simd: S, bytes: &[u8], inputs: usize, take: &mut impl Take<S>) {
    for (k, w) in bytes.chunks_exact(COLUMNS * D::WIDTH).take(inputs).enumerate() {
        let (left, right) = w.split_at(LANES * D::WIDTH);
        take.take(simd, k, [D::widen(simd, left), D::widen(simd, right)]);
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn coded<S: Simd, Q: Scales, C: Codes>(
    simd: S,
    bytes: &[u8],
    inputs: usize,
    take: &mut impl Take<S>,
) {
    for index in 0..inputs / GROUP {
        let group = group::<Q, C>(bytes, index);
        for run in 0..GROUP / Q::RUN {
            let left = Q::read(simd, (group.head, group.scales), 0, run, C::ZERO);
            let right = Q::read(simd, (group.head, group.scales), LANES, run, C::ZERO);
            for quad in run * Q::RUN / 4..(run + 1) * Q::RUN / 4 {
                let a = C::quad(simd, group.codes, quad, 0);
                let b = C::quad(simd, group.codes, quad, LANES);
                for (k, bit) in [0, 16, 8, 24].into_iter().enumerate() {
                    let a = simd.to_float(simd.field(a, bit, 255));
                    let b = simd.to_float(simd.field(b, bit, 255));
                    let w = [simd.fma(left.0, a, left.1), simd.fma(right.0, b, right.1)];
                    take.take(simd, index * GROUP + quad * 4 + k, w);
                }
            }
        }
    }
}
