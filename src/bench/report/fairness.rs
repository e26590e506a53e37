//! How alike tenants were served.

use serde::{Deserialize, Serialize};

use super::TenantReport;
use crate::bench::measure::{Outcome, Run};

/// Jain's index of what tenants got: 1 where all got the same, 1/n where one of n got everything.
///
/// `(x1 + .. + xn)^2 / (n (x1^2 + .. + xn^2))`: R. Jain, D. Chiu, W. Hawe, "A Quantitative Measure of Fairness and
/// Discrimination for Resource Allocation in Shared Computer Systems", DEC-TR-301, 1984.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Fairness {
    /// Of tokens of answers.
    pub tokens: f64,
    /// Of the part of what each asked for that it got, in tokens of answers.
    pub served: f64,
}

/// See [`Fairness`]; `None` where nobody got anything.
fn jain(got: &[f64]) -> Option<f64> {
    let sum: f64 = got.iter().sum();
    let squares: f64 = got.iter().map(|x| x * x).sum();
    (squares > 0.0).then(|| sum * sum / (got.len() as f64 * squares))
}

pub(super) fn fairness(tenants: &[TenantReport], run: &Run) -> Option<Fairness> {
    let tokens: Vec<f64> =
        tenants.iter().map(|tenant| tenant.throughput.output_tokens as f64).collect();
    let mut asked = vec![0.0; tenants.len()];
    for sample in run.samples.iter().filter(|sample| sample.outcome != Outcome::Unfinished) {
        if let Some(asked) = asked.get_mut(sample.tenant) {
            *asked += f64::from(sample.asked_tokens);
        }
    }
    // Who asked for nothing is not treated unfairly.
    let served: Vec<f64> = tokens
        .iter()
        .zip(&asked)
        .filter(|(_, asked)| **asked > 0.0)
        .map(|(tokens, asked)| (tokens / asked).min(1.0))
        .collect();
    Some(Fairness { tokens: jain(&tokens)?, served: jain(&served)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jains_index_of_known_shares() {
        for (got, index) in [
            (&[3.0, 3.0, 3.0][..], 1.0),
            (&[1.0, 0.0, 0.0, 0.0], 0.25),
            // The paper's own example of discrimination: two of three users get everything, equally.
            (&[5.0, 5.0, 0.0], 2.0 / 3.0),
            (&[1.0, 2.0, 3.0], 36.0 / 42.0),
        ] {
            assert!((jain(got).unwrap() - index).abs() < 1e-12, "{got:?}");
        }
        assert_eq!(jain(&[0.0, 0.0]), None);
        assert_eq!(jain(&[]), None);
    }
}
