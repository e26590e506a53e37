//! What the operator's metrics show of the cache.

/// How a value is distributed. Buckets as Prometheus has them, but each counts for itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Upper bound (inclusive, the last infinite), and how many values are within it and above the bound before.
    pub buckets: Vec<(f64, u64)>,
    /// Sum of all values.
    pub sum: f64,
}

/// Bounds in seconds: an adapter of 2 MB from the page cache takes a few milliseconds, one of 1 GB from a network disk
/// many seconds.
const LOAD_SECONDS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, f64::INFINITY];

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: LOAD_SECONDS.map(|bound| (bound, 0)).to_vec(), sum: 0.0 }
    }
}

impl Histogram {
    /// Counts one value.
    pub(super) fn observe(&mut self, value: f64) {
        let bucket = self.buckets.iter_mut().find(|(bound, _)| value <= *bound);
        bucket.expect("the last bound is infinite").1 += 1;
        self.sum += value;
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }
}

/// How the host cache is doing; totals count from the start.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheStats {
    /// Bytes that adapters may take in memory.
    pub budget: usize,
    /// Bytes that loaded adapters take.
    pub resident_bytes: usize,
    /// Bytes that are reserved for adapters being loaded.
    pub loading_bytes: usize,
    /// Loaded adapters.
    pub resident: usize,
    /// Adapters in the folder and the store, loaded or not; equal ones count once.
    pub known: usize,
    /// Bytes of their files.
    pub known_bytes: u64,
    /// Of these, the ones that requests hold leases of.
    pub leased: usize,
    /// Adapters being loaded.
    pub loading: usize,
    /// Requests that wait, for a load or for room.
    pub waiting: usize,
    /// Requests that were lent an adapter at once.
    pub hits: u64,
    /// Requests that had to wait for one, whatever came of it.
    pub misses: u64,
    /// Loads begun.
    pub loads: u64,
    /// Of these, the ones of adapters that had been dropped and are remembered: more memory would have saved them.
    pub reloads: u64,
    /// Loads that failed.
    pub load_failures: u64,
    /// Adapters dropped to make room.
    pub evictions: u64,
    /// How long loads took, failed ones too.
    pub load_seconds: Histogram,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_in_the_first_bucket_that_holds_it() {
        let mut histogram = Histogram::default();
        for value in [0.0, 0.001, 0.0011, 9.0, 1e9] {
            histogram.observe(value);
        }
        let counted: Vec<_> = histogram.buckets.iter().filter(|(_, n)| *n > 0).collect();
        assert_eq!(counted, [&(0.001, 2), &(0.0025, 1), &(10.0, 1), &(f64::INFINITY, 1)]);
        assert_eq!(histogram.count(), 5);
        assert!((histogram.sum - 1_000_000_009.0).abs() < 0.01);
    }
}
