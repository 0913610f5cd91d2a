//! Times, in a histogram that is summed up in eight numbers.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The histogram ends at a minute: longer times are counted there; the sum and the maximum have their true value.
const HIGHEST: u64 = 60_000_000_000;

/// Times to three significant digits. Owned by the thread that measures, and merged at its end.
///
/// The histogram begins with 16 KiB and grows each time the longest time doubles: to 80 KiB for times of some microseconds, to
/// 220 KiB at most. A set without a time has no histogram.
#[derive(Clone, Debug)]
pub struct Samples {
    /// Made at the first time.
    histogram: Option<Histogram<u64>>,
    /// Exact, unlike the histogram's values.
    min: u64,
    max: u64,
    sum: u64,
}

impl Default for Samples {
    fn default() -> Self {
        Self { histogram: None, min: u64::MAX, max: 0, sum: 0 }
    }
}

impl Samples {
    /// Adds a time.
    pub fn record(&mut self, nanoseconds: u64) {
        let histogram = self.histogram.get_or_insert_with(empty);
        histogram.record(nanoseconds.min(HIGHEST)).expect("it grows as it must");
        self.min = self.min.min(nanoseconds);
        self.max = self.max.max(nanoseconds);
        self.sum = self.sum.saturating_add(nanoseconds);
    }

    /// Adds all times of another set.
    pub fn merge(&mut self, other: &Self) {
        let Some(theirs) = &other.histogram else { return };
        self.histogram.get_or_insert_with(empty).add(theirs).expect("it grows as it must");
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// The number of times.
    pub fn count(&self) -> u64 {
        self.histogram.as_ref().map_or(0, Histogram::len)
    }

    /// The times in eight numbers.
    pub fn summary(&self) -> Distribution {
        let known = self.histogram.is_some();
        // A bucket's upper end may lie above the largest time in it.
        let at = |quantile| {
            let histogram = self.histogram.as_ref()?;
            Some(histogram.value_at_quantile(quantile).clamp(self.min, self.max))
        };
        Distribution {
            count: self.count(),
            min: known.then_some(self.min),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: known.then_some(self.max),
            sum: self.sum,
        }
    }
}

fn empty() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are among the five it offers")
}

/// Times in eight numbers, nanoseconds. Without a time `count` and `sum` are 0, and the others are null.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Distribution {
    /// The number of times.
    pub count: u64,
    /// The shortest, exact.
    pub min: Option<u64>,
    /// Half are at most this, to three digits.
    pub p50: Option<u64>,
    /// 90 % are at most this.
    pub p90: Option<u64>,
    /// 99 % are at most this.
    pub p99: Option<u64>,
    /// 99.9 % are at most this.
    pub p999: Option<u64>,
    /// The longest, exact.
    pub max: Option<u64>,
    /// All together, exact.
    pub sum: u64,
}

impl Distribution {
    /// The names of its numbers.
    pub const FIELDS: [&str; 8] = ["count", "min", "p50", "p90", "p99", "p999", "max", "sum"];
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_empty_set_has_no_quantiles() {
        let empty = Samples::default().summary();
        assert_eq!(empty, Distribution::default());
        let text = serde_json::to_string(&empty).unwrap();
        assert!(text.contains(r#""count":0"#) && text.contains(r#""p50":null"#), "{text}");
    }

    #[test]
    fn a_time_beyond_the_histogram_is_not_lost() {
        let mut samples = Samples::default();
        samples.record(0);
        samples.record(7 * HIGHEST);
        let summary = samples.summary();
        assert_eq!((summary.count, summary.min, summary.max), (2, Some(0), Some(7 * HIGHEST)));
        assert_eq!(summary.sum, 7 * HIGHEST);
    }

    proptest! {
        #[test]
        fn quantiles_agree_with_sorting(mut times in prop::collection::vec(1u64..10_000_000, 1..400)) {
            let mut samples = Samples::default();
            times.iter().for_each(|&time| samples.record(time));
            times.sort_unstable();
            let summary = samples.summary();
            prop_assert_eq!(summary.sum, times.iter().sum::<u64>());
            prop_assert_eq!((summary.min, summary.max), (times.first().copied(), times.last().copied()));
            for (quantile, found) in [(0.5, summary.p50), (0.9, summary.p90), (0.99, summary.p99)] {
                let rank = ((quantile * times.len() as f64).ceil() as usize).max(1);
                let (exact, found) = (times[rank - 1] as f64, found.unwrap() as f64);
                prop_assert!((found / exact - 1.0).abs() < 0.002, "{} {} {}", quantile, found, exact);
            }
        }

        #[test]
        fn merging_is_recording_everything_in_one(
            a in prop::collection::vec(0u64..1_000_000, 0..50),
            b in prop::collection::vec(0u64..1_000_000, 0..50),
        ) {
            let samples = |times: &[u64]| {
                let mut samples = Samples::default();
                times.iter().for_each(|&time| samples.record(time));
                samples
            };
            let mut merged = samples(&a);
            merged.merge(&samples(&b));
            prop_assert_eq!(merged.summary(), samples(&[a, b].concat()).summary());
        }
    }
}
