//! How fast the line moves: jobs that begin a second, while others wait.
//!
//! Little's law (Operations Research 9, 1961): who comes into a line of n, of which so many leave a second, waits for n divided by that.
//! Only times count in which somebody was left waiting. Otherwise few beginnings would say that few are asked for, and not how fast
//! the engine is; and of an engine that has not been pressed for a while nothing is known. Beginnings and not ends, because
//! clients that leave the line do not move it.

use std::time::Duration;

/// How long ago something was that counts by 1/e.
const MEMORY: f64 = 20.0;
/// From less time than this nothing is concluded.
const LEAST: f64 = 1.0;

/// Counts, which fade.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Pace {
    begun: f64,
    seconds: f64,
}

impl Pace {
    /// Some time has passed. `begun` jobs began at its end, if all the while some were waiting.
    pub(crate) fn pass(&mut self, time: Duration, begun: Option<u64>) {
        let seconds = time.as_secs_f64();
        let fade = (-seconds / MEMORY).exp();
        self.begun *= fade;
        self.seconds *= fade;
        if let Some(begun) = begun {
            self.begun += begun as f64;
            self.seconds += seconds;
        }
    }

    /// Jobs a second; `None` where too little is known. It is never 0: the next one may be about to begin.
    pub(crate) fn per_second(&self) -> Option<f64> {
        (self.seconds >= LEAST).then(|| (self.begun + 1.0) / self.seconds)
    }
}

/// How long the last of `waiting` jobs waits at this pace.
pub(crate) fn wait(waiting: usize, per_second: f64) -> Duration {
    Duration::try_from_secs_f64(waiting as f64 / per_second).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(pace: &mut Pace, seconds: u64, begun: Option<u64>) {
        for _ in 0..10 * seconds {
            pace.pass(Duration::from_millis(100), begun);
        }
    }

    #[test]
    fn only_times_when_somebody_waited_say_how_fast_it_is() {
        let mut pace = Pace::default();
        assert_eq!(pace.per_second(), None);
        passed(&mut pace, 60, None);
        assert_eq!(pace.per_second(), None);
        passed(&mut pace, 1, Some(1));
        assert_eq!(pace.per_second(), None, "not yet for long enough");
        passed(&mut pace, 20, Some(1));
        let known = pace.per_second().unwrap();
        assert!((9.9..10.2).contains(&known), "{known}");
        // A little later it is still as fast, and after a while nobody knows.
        passed(&mut pace, 10, None);
        assert!((9.9..10.3).contains(&pace.per_second().unwrap()));
        passed(&mut pace, 60, None);
        assert_eq!(pace.per_second(), None);
    }

    #[test]
    fn it_becomes_what_it_was_for_the_last_while() {
        let mut pace = Pace::default();
        passed(&mut pace, 100, Some(5));
        passed(&mut pace, 60, Some(1));
        let known = pace.per_second().unwrap();
        assert!((10.0..13.0).contains(&known), "{known}");
        passed(&mut pace, 60, Some(0));
        let known = pace.per_second().unwrap();
        assert!((0.05..1.0).contains(&known), "{known}");
    }

    #[test]
    fn a_wait_is_the_line_over_the_pace() {
        assert_eq!(wait(0, 0.5), Duration::ZERO);
        assert_eq!(wait(6, 2.0), Duration::from_secs(3));
        assert_eq!(wait(usize::MAX, f64::MIN_POSITIVE), Duration::MAX);
    }
}
