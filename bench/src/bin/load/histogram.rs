//! Latencies in nanoseconds, in log-linear buckets: 128 to each power of two, so that a value is
//! known to better than 1 % whatever its size, and recording is one addition.

use std::time::Duration;

const SUB_BITS: u32 = 7;
const SUB_BUCKETS: usize = 1 << SUB_BITS;
const BUCKETS: usize = (64 - SUB_BITS as usize + 1) << SUB_BITS;

pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Histogram {
    pub(crate) fn new() -> Histogram {
        Histogram {
            counts: vec![0; BUCKETS],
            total: 0,
            max: 0,
        }
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
        self.max = self.max.max(nanos);
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    pub(crate) fn max_micros(&self) -> f64 {
        self.max as f64 / 1e3
    }

    /// The latency in microseconds that `share` (0 to 1) of the recorded values do not exceed.
    pub(crate) fn quantile_micros(&self, share: f64) -> f64 {
        let wanted = (share * self.total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return lowest(index).min(self.max) as f64 / 1e3;
            }
        }
        self.max_micros()
    }
}

fn bucket(nanos: u64) -> usize {
    if nanos < SUB_BUCKETS as u64 {
        return nanos as usize;
    }
    let shift = nanos.ilog2() - SUB_BITS;
    let sub = (nanos >> shift) as usize - SUB_BUCKETS;
    ((shift as usize + 1) << SUB_BITS) + sub
}

fn lowest(bucket: usize) -> u64 {
    if bucket < SUB_BUCKETS {
        return bucket as u64;
    }
    let shift = (bucket >> SUB_BITS) - 1;
    ((bucket % SUB_BUCKETS + SUB_BUCKETS) as u64) << shift
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_within_one_percent_of_its_values() {
        for power in 0..63 {
            for value in [1u64 << power, (1 << power) + (1 << power) / 3] {
                let low = lowest(bucket(value));
                assert!(low <= value && (value - low) as f64 <= value as f64 / 100.0);
            }
        }
        assert!(bucket(u64::MAX) < BUCKETS);
    }

    #[test]
    fn quantiles_of_a_known_series_are_right() {
        let mut histogram = Histogram::new();
        for micros in 1..=1000 {
            histogram.record(Duration::from_micros(micros));
        }
        for (share, expected) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0)] {
            let found = histogram.quantile_micros(share);
            assert!((found - expected).abs() <= expected / 100.0, "{found}");
        }
        assert_eq!(histogram.max_micros(), 1000.0);
    }
}
