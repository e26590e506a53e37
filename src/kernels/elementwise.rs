//! What happens to a row between its products: normalisation, rotation, gating.
//!
//! Each row is computed by itself, in an order that depends on its length alone, by whoever takes it as an input.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape};

use super::{
    simd::{Kernel, LANES, Simd, Tier},
    slice_of,
};

/// The gain of a normalisation for some rows of a step, in the place of the base's own.
#[derive(Debug, Clone)]
pub struct GainRows<'a> {
    /// Rows of the step.
    pub rows: Range<usize>,
    /// `[hidden]`
    pub gain: &'a [f32],
}

/// `y = x / sqrt(mean(x^2) + eps) * gain`, row by row (`RMSNorm`, Zhang and Sennrich, arXiv 1910.07467).
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm<'a> {
    /// The base's gain `[hidden]`.
    pub gain: &'a [f32],
    /// Rows with a gain of their own: ascending, none twice.
    pub gains: &'a [GainRows<'a>],
    /// Keeps the root away from zero.
    pub eps: f32,
}

impl RmsNorm<'_> {
    /// Normalises `x`, row `row` of the step, into `y`.
    pub(super) fn row(&self, tier: Tier, row: usize, x: &[f32], y: &mut [f32]) {
        let own = self.gains.iter().find(|own| own.rows.contains(&row));
        let gain = own.map_or(self.gain, |own| own.gain);
        tier.run(NormRow { x, gain, eps: self.eps, y });
    }
}

/// The normalisation alone, `[rows, hidden] -> [rows, hidden]`: the same bits that a product takes of it.
#[derive(Clone, Copy, Debug)]
pub struct Normalised<'a> {
    /// The instructions to use.
    pub tier: Tier,
    /// What is done to each row.
    pub norm: RmsNorm<'a>,
}

impl CustomOp1 for Normalised<'_> {
    fn name(&self) -> &'static str {
        "normalised"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, hidden) = layout.shape().dims2()?;
        if hidden == 0 || hidden != self.norm.gain.len() {
            candle_core::bail!("norm: a gain of {} for rows of {hidden}", self.norm.gain.len());
        }
        let mut y = vec![0.0; rows * hidden];
        let given = slice_of(x, layout)?.chunks_exact(hidden);
        for (row, (x, y)) in given.zip(y.chunks_exact_mut(hidden)).enumerate() {
            self.norm.row(self.tier, row, x, y);
        }
        Ok((CpuStorage::F32(y), (rows, hidden).into()))
    }
}

struct NormRow<'a> {
    x: &'a [f32],
    gain: &'a [f32],
    eps: f32,
    y: &'a mut [f32],
}

impl Kernel for NormRow<'_> {
    type Output = ();

    #[expect(clippy::inline_always, reason = "compiled once per tier")]
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (blocks, rest) = self.x.as_chunks::<LANES>();
        let mut last = [0.0; LANES];
        last[..rest.len()].copy_from_slice(rest);
        let mut squares = simd.splat(0.0);
        for x in blocks {
            let x = simd.load(x);
            squares = simd.fma(x, x, squares);
        }
        let x = simd.load(&last);
        squares = simd.fma(x, x, squares);
        let scale = 1.0 / (simd.sum(squares) / self.x.len() as f32 + self.eps).sqrt();
        for ((y, x), gain) in self.y.iter_mut().zip(self.x).zip(self.gain) {
            *y = x * scale * gain;
        }
    }
}

/// `y = silu(gate) * up` for a row of `[gate, up]` side by side (`SwiGLU`, Shazeer, arXiv 2002.05202).
pub(super) fn silu_mul_row(tier: Tier, both: &[f32], y: &mut [f32]) {
    let (gate, up) = both.split_at(both.len() / 2);
    tier.run(SiluRow { gate, up, y });
}

struct SiluRow<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for SiluRow<'_> {
    type Output = ();

    #[expect(clippy::inline_always, reason = "compiled once per tier")]
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (gates, gate) = self.gate.as_chunks();
        let (ups, up) = self.up.as_chunks();
        let (ys, y) = self.y.as_chunks_mut();
        for ((gate, up), y) in gates.iter().zip(ups).zip(ys) {
            silu_mul(simd, gate, up, y);
        }
        let mut last = [[0.0; LANES]; 3];
        last[0][..gate.len()].copy_from_slice(gate);
        last[1][..up.len()].copy_from_slice(up);
        let [gate, up, out] = &mut last;
        silu_mul(simd, gate, up, out);
        y.copy_from_slice(&out[..y.len()]);
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn silu_mul<S: Simd>(simd: S, gate: &[f32; LANES], up: &[f32; LANES], y: &mut [f32; LANES]) {
    let (gate, up) = (simd.load(gate), simd.load(up));
    let e = simd.exp(simd.mul(gate, simd.splat(-1.0)));
    let silu = simd.div(gate, simd.add(e, simd.splat(1.0)));
    simd.store(simd.mul(silu, up), y);
}

/// Cosine and sine of the angles by which rows are turned, for their positions (`RoPE`, Su et al., arXiv 2104.09864).
#[derive(Clone, Copy, Debug)]
pub struct Angles<'a> {
    /// `[rows, dim / 2]`
    pub cos: &'a [f32],
    /// `[rows, dim / 2]`
    pub sin: &'a [f32],
}

impl Angles<'_> {
    /// Fails unless there are angles for `rows` rows of heads of `dim`.
    pub(super) fn check(&self, rows: usize, dim: usize) -> Result<()> {
        if self.cos.len() != rows * (dim / 2) || self.sin.len() != rows * (dim / 2) {
            candle_core::bail!("angles: {} for {rows} rows of heads of {dim}", self.cos.len());
        }
        Ok(())
    }

    /// Turns `head [dim]` of row `row`, dimension i with i + dim/2, into `out`.
    #[inline]
    pub(super) fn turn(&self, row: usize, head: &[f32], out: &mut [f32]) {
        let half = head.len() / 2;
        let angles = row * half..(row + 1) * half;
        let (left, right) = head.split_at(half);
        let (out_left, out_right) = out.split_at_mut(half);
        let turned = out_left.iter_mut().zip(out_right);
        let angles = self.cos[angles.clone()].iter().zip(&self.sin[angles]);
        for (((a, b), (cos, sin)), (x, y)) in left.iter().zip(right).zip(angles).zip(turned) {
            (*x, *y) = (a * cos - b * sin, b * cos + a * sin);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn floats(len: usize) -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec(-20.0_f32..20.0, len)
    }

    fn assert_close(got: &[f32], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            let tolerance = 1e-5 * (1.0 + want.abs());
            assert!((f64::from(*got) - want).abs() <= tolerance, "{got} is not {want}");
        }
    }

    proptest! {
        #[test]
        fn rms_norm_is_its_formula((width, x) in (1_usize..70).prop_flat_map(|w| (Just(w), floats(w * 11)))) {
            let gain: Vec<f32> = (0..width).map(|i| 0.5 + i as f32 / 7.0).collect();
            let own = vec![2.0; width];
            let gains = [GainRows { rows: 3..5, gain: &own }];
            let want: Vec<f64> = x.chunks(width).enumerate().flat_map(|(row, x)| {
                let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
                let gain = if (3..5).contains(&row) { &own } else { &gain };
                x.iter().zip(gain).map(|(x, g)| f64::from(*x) / (mean + 1e-5).sqrt() * f64::from(*g)).collect::<Vec<_>>()
            }).collect();
            let mut first: Option<Vec<f32>> = None;
            for tier in Tier::available() {
                let norm = RmsNorm { gain: &gain, gains: &gains, eps: 1e-5 };
                let mut y = vec![0.0; x.len()];
                for (row, (x, y)) in x.chunks(width).zip(y.chunks_mut(width)).enumerate() {
                    norm.row(tier, row, x, y);
                }
                assert_close(&y, &want);
                prop_assert_eq!(&y, first.get_or_insert_with(|| y.clone()), "{}", tier);
            }
        }

        #[test]
        fn silu_mul_is_its_formula((width, x) in (1_usize..40).prop_flat_map(|w| (Just(w), floats(w * 2 * 9)))) {
            let want: Vec<f64> = x.chunks(2 * width).flat_map(|row| {
                let (gate, up) = row.split_at(width);
                gate.iter().zip(up).map(|(g, u)| {
                    let g = f64::from(*g);
                    g / (1.0 + (-g).exp()) * f64::from(*u)
                }).collect::<Vec<_>>()
            }).collect();
            let mut first: Option<Vec<f32>> = None;
            for tier in Tier::available() {
                let mut y = vec![0.0; x.len() / 2];
                for (x, y) in x.chunks(2 * width).zip(y.chunks_mut(width)) {
                    silu_mul_row(tier, x, y);
                }
                assert_close(&y, &want);
                prop_assert_eq!(&y, first.get_or_insert_with(|| y.clone()), "{}", tier);
            }
        }
    }

    #[test]
    fn a_turn_keeps_lengths_and_takes_the_angles_of_its_row() {
        let angles = Angles { cos: &[0.0, 0.0, 0.6, 1.0], sin: &[9.0, 9.0, 0.8, 0.0] };
        let mut y = [0.0; 4];
        angles.turn(1, &[1.0, 2.0, 3.0, 4.0], &mut y);
        assert_close(&y, &[0.6 - 3.0 * 0.8, 2.0, 3.0 * 0.6 + 0.8, 4.0]);
        let length = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>();
        assert!((length(&y) - 30.0).abs() < 1e-4, "{y:?}");
    }

    #[test]
    fn exp_is_right_to_the_last_places_and_the_same_on_every_tier() {
        struct Exp<'a>(&'a [f32; LANES]);
        impl Kernel for Exp<'_> {
            type Output = [f32; LANES];
            fn run<S: Simd>(self, simd: S) -> [f32; LANES] {
                let mut y = [0.0; LANES];
                simd.store(simd.exp(simd.load(self.0)), &mut y);
                y
            }
        }
        for step in 0..2000_u16 {
            let x: [f32; LANES] =
                std::array::from_fn(|i| (f32::from(step) - 1000.0) * 0.085 + i as f32 * 0.005);
            let all: Vec<_> = Tier::available().into_iter().map(|tier| tier.run(Exp(&x))).collect();
            for (got, x) in all[0].iter().zip(x) {
                let want = f64::from(x.clamp(-87.0, 88.0)).exp();
                assert!(
                    (f64::from(*got) - want).abs() <= want * 3e-7,
                    "exp({x}) = {got}, not {want}"
                );
            }
            assert!(all.iter().all(|y| y.map(f32::to_bits) == all[0].map(f32::to_bits)));
        }
    }
}
