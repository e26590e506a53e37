//! How much tokens weigh: exponentials in whole numbers, the same on every machine.

/// The weight of the likeliest token. Sums over a vocabulary of up to 2^24 tokens fit into 64 bits.
pub(super) const ONE: u64 = 1 << 40;

/// `exp(distance)` in units of 1 / [`ONE`], rounded down, for a distance of at most 0.
///
/// What is less likely than a 10^12th of the likeliest weighs nothing: a whole vocabulary of that is below the precision
/// of an f32.
pub(super) fn weight(distance: f32) -> u64 {
    /// `exp` of less is below 1 / [`ONE`].
    const LEAST: f32 = -27.8;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "from 0 to ONE; NaN, which is less than nothing, gives 0"
    )]
    if distance < LEAST { 0 } else { (exp(distance) * ONE as f32) as u64 }
}

/// `exp(x)` for x from -87 to 0 with a relative error below 2e-7, the same on every machine (libm's is not).
///
/// Cephes' `expf` (Moshier 1989): x = n ln 2 + r with whole n, and a polynomial for exp(r), |r| <= ln 2 / 2.
fn exp(x: f32) -> f32 {
    /// Added and subtracted, it leaves the nearest whole number: 1.5 * 2^23.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first with few enough bits for an exact product.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    /// Of r^7, r^6, ... r^2.
    const TERMS: [f32; 6] =
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5];
    let n = x * std::f32::consts::LOG2_E + ROUND - ROUND;
    let r = x - n * LN_2[0] - n * LN_2[1];
    let tail = TERMS.iter().fold(0.0, |sum, term| sum * r + term);
    #[expect(clippy::cast_possible_truncation, reason = "from -126 to 0")]
    let exponent = n as i32;
    (tail * r * r + r + 1.0) * f32::from_bits(((exponent + 127) << 23).cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_near_the_true_one() {
        for step in 0..=100_000_u32 {
            let x = step as f32 * -8.7e-4;
            let truth = f64::from(x).exp();
            let error = (f64::from(exp(x)) - truth).abs() / truth;
            assert!(error < 2e-7, "exp({x}) is off by {error}");
        }
        assert_eq!([0.0, -27.9, f32::NEG_INFINITY, f32::NAN].map(weight), [ONE, 0, 0, 0]);
        assert!(weight(-27.0) > 0);
    }
}
