//! What a request must keep to count as served well.

use std::{fmt, str::FromStr, time::Duration};

use super::measure::Sample;

/// Bounds for one request: `ttft=500ms,itl=50ms,e2e=10s`, any of them.
///
/// `itl` bounds the mean time between a request's tokens, from its first to its last (also called `tpot`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slo {
    /// To the first token.
    pub ttft: Option<Duration>,
    /// Between tokens, on average.
    pub itl: Option<Duration>,
    /// To the end.
    pub e2e: Option<Duration>,
}

impl Slo {
    /// Whether it bounds anything.
    pub fn is_some(&self) -> bool {
        *self != Self::default()
    }

    /// Whether a request was answered, within the bounds.
    pub fn is_met(&self, sample: &Sample) -> bool {
        let within = |bound: Option<Duration>, time: Option<Duration>| match (bound, time) {
            (Some(bound), Some(time)) => time <= bound,
            (Some(_), None) => false,
            (None, _) => true,
        };
        sample.is_done()
            && within(self.ttft, sample.ttft())
            // An answer of one token has no time between tokens that could be too long.
            && within(self.itl, Some(sample.between_tokens().unwrap_or_default()))
            && within(self.e2e, Some(sample.e2e()))
    }
}

impl FromStr for Slo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || "bounds such as ttft=500ms,itl=50ms,e2e=10s are expected".to_owned();
        let mut slo = Self::default();
        for part in text.split(',') {
            let (name, time) = part.split_once('=').ok_or_else(wanted)?;
            let bound = time_of(time).ok_or_else(wanted)?;
            let place = match name.trim() {
                "ttft" => &mut slo.ttft,
                "itl" | "tpot" => &mut slo.itl,
                "e2e" => &mut slo.e2e,
                _ => return Err(wanted()),
            };
            *place = Some(bound);
        }
        Ok(slo)
    }
}

/// `500ms`, `1.5s` or `2m`.
fn time_of(text: &str) -> Option<Duration> {
    let text = text.trim();
    let (number, unit) = [("ms", 1e-3), ("s", 1.0), ("m", 60.0)]
        .iter()
        .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)))?;
    let number: f64 = number.trim_end().parse().ok()?;
    Duration::try_from_secs_f64(number * unit).ok().filter(|time| !time.is_zero())
}

impl fmt::Display for Slo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bounds = [("ttft", self.ttft), ("itl", self.itl), ("e2e", self.e2e)];
        let mut separator = "";
        for (name, bound) in bounds {
            if let Some(bound) = bound {
                write!(f, "{separator}{name}={}ms", bound.as_secs_f64() * 1e3)?;
                separator = ",";
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::measure::Outcome, *};

    #[test]
    fn bounds_are_read_and_shown() {
        let slo: Slo = "ttft=500ms, itl=50ms,e2e=1.5s".parse().unwrap();
        assert_eq!(slo.to_string(), "ttft=500ms,itl=50ms,e2e=1500ms");
        assert_eq!("tpot=2m".parse::<Slo>().unwrap().itl, Some(Duration::from_mins(2)));
        for text in ["", "ttft", "ttft=5", "ttft=0ms", "ttft=-1s", "speed=1s", "ttft=nans"] {
            assert!(text.parse::<Slo>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_request_meets_its_bounds_or_not() {
        let millis = Duration::from_millis;
        // Due at 100 ms, its first token at 400, 11 tokens until 900: 50 ms each.
        let sample = Sample {
            due: millis(100),
            sent: millis(150),
            first: Some(millis(400)),
            last: Some(millis(900)),
            end: millis(1000),
            output_tokens: 11,
            outcome: Outcome::Done,
            ..Sample::default()
        };
        for (slo, met) in [
            ("ttft=300ms", true),
            ("ttft=299ms", false),
            ("itl=50ms", true),
            ("itl=49ms", false),
            ("e2e=900ms", true),
            ("e2e=899ms,ttft=1s", false),
        ] {
            assert_eq!(slo.parse::<Slo>().unwrap().is_met(&sample), met, "{slo}");
        }
        let failed = Sample { outcome: Outcome::Refused { status: 429 }, ..sample };
        assert!(!"e2e=1m".parse::<Slo>().unwrap().is_met(&failed));
        assert!(!Slo::default().is_met(&failed));
    }
}
