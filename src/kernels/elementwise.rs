//! What happens to a row between its products: normalisation, rotation, gating.
//!
//! Each row is computed by itself, in an order that depends on its length alone.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape};

use super::{
    pool::{Disjoint, Pool},
    simd::{Kernel, LANES, Simd, Tier},
    slice_of,
};

/// Rows of one task: small ops are not worth a thread each.
const ROW_BLOCK: usize = 8;

/// Runs `task` for blocks of rows of `y`.
fn by_rows(
    pool: &Pool,
    y: &mut [f32],
    width: usize,
    task: impl Fn(Range<usize>, &mut [f32]) + Sync,
) {
    let rows = y.len() / width.max(1);
    let y = Disjoint::new(y);
    pool.run(rows.div_ceil(ROW_BLOCK), |block| {
        let block = block * ROW_BLOCK..rows.min((block + 1) * ROW_BLOCK);
        // SAFETY: blocks of rows are disjoint.
        let y = unsafe { y.part(block.start * width..block.end * width) };
        task(block, y);
    });
}

/// The gain of a normalisation for some rows of a step, in the place of the base's own.
#[derive(Debug, Clone)]
pub struct GainRows<'a> {
    /// Rows of the step.
    pub rows: Range<usize>,
    /// `[hidden]`
    pub gain: &'a [f32],
}

/// `y = x / sqrt(mean(x^2) + eps) * gain`, row by row (`RMSNorm`, Zhang and Sennrich, arXiv 1910.07467).
#[derive(Debug)]
pub struct RmsNorm<'a> {
    /// The instructions to use.
    pub tier: Tier,
    /// The threads to use.
    pub pool: &'a Pool,
    /// The base's gain `[hidden]`.
    pub gain: &'a [f32],
    /// Rows with a gain of their own: ascending, none twice.
    pub gains: &'a [GainRows<'a>],
    /// Keeps the root away from zero.
    pub eps: f32,
}

impl CustomOp1 for RmsNorm<'_> {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, hidden) = layout.shape().dims2()?;
        if self.gain.len() != hidden {
            candle_core::bail!("rms-norm: {} gains for rows of {hidden}", self.gain.len());
        }
        let x = slice_of(x, layout)?;
        let mut y = vec![0.0; rows * hidden];
        by_rows(self.pool, &mut y, hidden, |block, y| {
            for (row, y) in block.zip(y.chunks_exact_mut(hidden)) {
                let own = self.gains.iter().find(|own| own.rows.contains(&row));
                let gain = own.map_or(self.gain, |own| own.gain);
                let x = &x[row * hidden..(row + 1) * hidden];
                self.tier.run(NormRow { x, gain, eps: self.eps, y });
            }
        });
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

/// `y = silu(gate) * up` for rows of `[gate, up]` side by side (`SwiGLU`, Shazeer, arXiv 2002.05202).
#[derive(Debug)]
pub struct SiluMul<'a> {
    /// The instructions to use.
    pub tier: Tier,
    /// The threads to use.
    pub pool: &'a Pool,
}

impl CustomOp1 for SiluMul<'_> {
    fn name(&self) -> &'static str {
        "silu-mul"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, both) = layout.shape().dims2()?;
        let ffn = both / 2;
        let x = slice_of(x, layout)?;
        let mut y = vec![0.0; rows * ffn];
        by_rows(self.pool, &mut y, ffn, |block, y| {
            for (row, y) in block.zip(y.chunks_exact_mut(ffn)) {
                let (gate, up) = x[row * both..(row + 1) * both].split_at(ffn);
                self.tier.run(SiluRow { gate, up, y });
            }
        });
        Ok((CpuStorage::F32(y), (rows, ffn).into()))
    }
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

/// Turns queries and keys by their positions (`RoPE`, Su et al., arXiv 2104.09864), dimension i with i + d/2.
///
/// Takes rows of `[queries, keys, values]` and leaves the values as they are.
#[derive(Debug)]
pub struct Rotate<'a> {
    /// The threads to use.
    pub pool: &'a Pool,
    /// Cosine and sine `[rows, head_dim / 2]` of each row's angles.
    pub cos: &'a [f32],
    /// See `cos`.
    pub sin: &'a [f32],
    /// Width of a head.
    pub head_dim: usize,
    /// Query and key heads together.
    pub heads: usize,
}

impl CustomOp1 for Rotate<'_> {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let x = slice_of(x, layout)?;
        let half = self.head_dim / 2;
        if self.cos.len() != rows * half || self.sin.len() != rows * half {
            candle_core::bail!("rotate: angles for {} rows of {rows}", self.cos.len() / half);
        }
        let mut y = x.to_vec();
        by_rows(self.pool, &mut y, width, |block, y| {
            for (row, y) in block.zip(y.chunks_exact_mut(width)) {
                let angles = row * half..(row + 1) * half;
                let (cos, sin) = (&self.cos[angles.clone()], &self.sin[angles]);
                for head in y.chunks_exact_mut(self.head_dim).take(self.heads) {
                    let (left, right) = head.split_at_mut(half);
                    for (((a, b), cos), sin) in left.iter_mut().zip(right).zip(cos).zip(sin) {
                        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                    }
                }
            }
        });
        Ok((CpuStorage::F32(y), (rows, width).into()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use proptest::prelude::*;

    use super::*;

    fn floats(len: usize) -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec(-20.0_f32..20.0, len)
    }

    fn rows_of(values: &[f32], width: usize) -> Tensor {
        Tensor::from_slice(values, (values.len() / width, width), &Device::Cpu).unwrap()
    }

    fn flat(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
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
            let pool = Pool::new(2).unwrap();
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
                let op = RmsNorm { tier, pool: &pool, gain: &gain, gains: &gains, eps: 1e-5 };
                let y = flat(&rows_of(&x, width).apply_op1_no_bwd(&op).unwrap());
                assert_close(&y, &want);
                prop_assert_eq!(&y, first.get_or_insert_with(|| y.clone()), "{}", tier);
            }
        }

        #[test]
        fn silu_mul_is_its_formula((width, x) in (1_usize..40).prop_flat_map(|w| (Just(w), floats(w * 2 * 9)))) {
            let pool = Pool::new(2).unwrap();
            let want: Vec<f64> = x.chunks(2 * width).flat_map(|row| {
                let (gate, up) = row.split_at(width);
                gate.iter().zip(up).map(|(g, u)| {
                    let g = f64::from(*g);
                    g / (1.0 + (-g).exp()) * f64::from(*u)
                }).collect::<Vec<_>>()
            }).collect();
            let mut first: Option<Vec<f32>> = None;
            for tier in Tier::available() {
                let op = SiluMul { tier, pool: &pool };
                let y = flat(&rows_of(&x, 2 * width).apply_op1_no_bwd(&op).unwrap());
                assert_close(&y, &want);
                prop_assert_eq!(&y, first.get_or_insert_with(|| y.clone()), "{}", tier);
            }
        }
    }

    #[test]
    fn rotation_keeps_lengths_and_leaves_values_alone() {
        let pool = Pool::new(1).unwrap();
        let (cos, sin) = ([0.6_f32, 1.0], [0.8_f32, 0.0]);
        let op = Rotate { pool: &pool, cos: &cos, sin: &sin, head_dim: 4, heads: 1 };
        let op = Rotate { cos: &op.cos[..2], ..op };
        let x = rows_of(&[1.0, 2.0, 3.0, 4.0, 9.0, 9.0, 9.0, 9.0], 8);
        let y = flat(&x.apply_op1_no_bwd(&op).unwrap());
        assert_close(
            &y,
            &[1.0 * 0.6 - 3.0 * 0.8, 2.0, 3.0 * 0.6 + 1.0 * 0.8, 4.0, 9.0, 9.0, 9.0, 9.0]
                .map(|x: f64| (x * 1e6).round() / 1e6),
        );
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
