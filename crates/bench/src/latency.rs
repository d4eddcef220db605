//! Latency: a histogram of durations with a bounded error.
//! Owns: the buckets and the quantiles.
//! Never: allocates while it counts.
//! Invariant: a quantile is at most 1/64 too small.
//! Source: buckets of 64 steps per power of two, of nanoseconds.

use std::time::Duration;

const STEPS: u64 = 64;
const STEP_BITS: u32 = STEPS.trailing_zeros();
const BUCKETS: usize = (64 - STEP_BITS as usize + 1) * STEPS as usize;

/// Counts of durations.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: Duration,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: vec![0; BUCKETS], total: 0, max: Duration::ZERO }
    }
}

fn bucket(nanos: u64) -> usize {
    if nanos < STEPS {
        return nanos as usize;
    }
    let shift = nanos.ilog2() - STEP_BITS;
    let step = (nanos >> shift) - STEPS;
    ((u64::from(shift) + 1) * STEPS + step) as usize
}

fn lowest(bucket: usize) -> u64 {
    let (row, step) = (bucket as u64 / STEPS, bucket as u64 % STEPS);
    if row == 0 { step } else { (STEPS + step) << (row - 1) }
}

impl Histogram {
    /// Counts one duration.
    pub fn add(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
        self.max = self.max.max(duration);
    }

    /// The duration that the part `quantile` (0 to 1) of all does not exceed; zero when empty.
    pub fn quantile(&self, quantile: f64) -> Duration {
        let rank = (self.total as f64 * quantile) as u64;
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen > rank {
                return Duration::from_nanos(lowest(at));
            }
        }
        self.max
    }

    /// The longest duration, exactly.
    pub fn max(&self) -> Duration {
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_ordered_and_narrow() {
        let mut nanos = 0u64;
        while nanos < u64::MAX / 2 {
            let at = bucket(nanos);
            assert!(lowest(at) <= nanos && nanos - lowest(at) <= nanos / STEPS, "{nanos}");
            assert!(bucket(nanos + 1) == at || bucket(nanos + 1) == at + 1);
            nanos += nanos / 8 + 1;
        }
        assert!(bucket(u64::MAX) < BUCKETS);
    }

    #[test]
    fn quantiles_follow_the_counts() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), Duration::ZERO);
        for micros in 1..=100 {
            histogram.add(Duration::from_micros(micros));
        }
        let median = histogram.quantile(0.5).as_nanos();
        assert!((50_000..=51_000).contains(&median), "{median}");
        assert!(histogram.quantile(0.99) <= Duration::from_micros(100));
        assert_eq!(histogram.max(), Duration::from_micros(100));
    }
}
