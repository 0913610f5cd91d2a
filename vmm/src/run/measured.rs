//! What a trial measured: counts, which must be the same every time, and times, which are pooled.

use std::collections::BTreeMap;

use guest_mem::Earned;
use notifier_bridge::{Count, SharedTlbStats, Totals};

use super::expected::Expected;
use super::own_swap::Returned;
use crate::events::{Refill, TrialEvents};
use crate::record::Samples;
use crate::tap::{Account, RangeCause};
use crate::testbed::GivenBack;

/// What is counted. Every one of these is exact where it is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Counts {
    /// Operations asked for.
    pub victims: u64,
    /// Bytes they were to take.
    pub victim_bytes: u64,
    /// Bytes that really left.
    pub evicted_bytes: u64,
    /// Bytes of these that were back before the guest was asked to touch them; `None` where nobody looked.
    pub returned_bytes: Option<u64>,
    /// Operations that had to be asked for again, because the kernel had passed over a page in use.
    pub repeated: u64,
    /// What was announced and dropped, from the ledger.
    pub totals: Totals,
    /// What the kernel was expected to announce, from pagemap before each operation; unknown once one of them named no
    /// address.
    pub expected: Expected,
    /// Leaf translations of 4 KiB dropped.
    pub sptes_zapped_4k: Count,
    /// Leaf translations of 2 MiB dropped.
    pub sptes_zapped_2m: Count,
    /// Remote TLB flushes during the reclaim steps.
    pub remote_tlb_flushes: Count,
    /// Faults on pages that were taken.
    pub refaults: Count,
    /// Faults on pages that never left.
    pub collateral_faults: Count,
    /// What the victims were when they were taken.
    pub was: Earned,
    /// Pages that came back wrong.
    pub integrity_errors: u64,
    /// What the device on the host's page tables saw; `None` without one.
    pub device: Option<SharedTlbStats>,
    /// What the guest gave back of itself; `None` where it has no system that could.
    pub given_back: Option<GivenBack>,
    /// What came back by itself, where this process swaps.
    pub own_swap: Option<Returned>,
    /// Records that found the ledger full.
    pub lost_records: u64,
    /// Stalls that found the guest's ring full.
    pub lost_stalls: u64,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            victims: 0,
            victim_bytes: 0,
            evicted_bytes: 0,
            returned_bytes: None,
            repeated: 0,
            totals: Totals::ZERO,
            expected: Expected::NOTHING,
            sptes_zapped_4k: Count::ZERO,
            sptes_zapped_2m: Count::ZERO,
            remote_tlb_flushes: Count::ZERO,
            refaults: Count::ZERO,
            collateral_faults: Count::ZERO,
            was: Earned::NOTHING,
            integrity_errors: 0,
            device: None,
            given_back: None,
            own_swap: None,
            lost_records: 0,
            lost_stalls: 0,
        }
    }
}

impl Counts {
    /// The names and both values of the counts in which another trial of the same row differs. Only those that
    /// depend on nothing but the scenario: what the guest faulted in while the host worked varies.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let counts = |c: &Self| {
            [
                ("victims", c.victims),
                ("evicted_bytes", c.evicted_bytes),
                ("invalidations", c.totals.invalidations),
                ("needed_bytes", c.totals.needed_bytes),
                ("invalidated_bytes", c.totals.invalidated_bytes),
                ("slots_zapped", c.totals.slots_zapped),
            ]
        };
        let pairs = counts(self).into_iter().zip(counts(other));
        pairs.filter(|(a, b)| a != b).map(|((name, a), (_, b))| format!("{name} {a} and {b}")).collect()
    }
}

/// What is timed.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// Each zap by the listener.
    pub zap: Samples,
    /// Each operation.
    pub reclaim: Samples,
    /// Each guest stall on a page that was taken.
    pub refault: Samples,
    /// Each guest stall on a page that never left.
    pub collateral: Samples,
    /// Each guest stall while nothing was done to it: what the others contain of noise.
    pub undisturbed: Samples,
}

impl Times {
    /// Adds another trial's.
    pub fn pool(&mut self, other: &Self) {
        for (mine, theirs) in [
            (&mut self.zap, &other.zap),
            (&mut self.reclaim, &other.reclaim),
            (&mut self.refault, &other.refault),
            (&mut self.collateral, &other.collateral),
            (&mut self.undisturbed, &other.undisturbed),
        ] {
            mine.merge(theirs);
        }
    }
}

/// A hot loop's speed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    /// Touches made.
    pub touches: u64,
    /// In so many nanoseconds.
    pub ns: u64,
}

impl Rate {
    /// Touches a second; `None` before anything was measured.
    pub fn per_second(self) -> Option<f64> {
        (self.ns > 0).then(|| self.touches as f64 * 1e9 / self.ns as f64)
    }

    /// Both spans together.
    pub fn and(self, other: Self) -> Self {
        Self { touches: self.touches + other.touches, ns: self.ns + other.ns }
    }
}

/// Everything of one trial, or of several pooled.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// What was counted.
    pub counts: Counts,
    /// What was timed.
    pub times: Times,
    /// The hot loops undisturbed; `None` if the case has no baseline.
    pub before: Option<Rate>,
    /// The hot loops while memory was taken; `None` if none ran.
    pub during: Option<Rate>,
    /// The kernel's account of the steps that took memory; `None` where nobody keeps one.
    pub kernel: Option<Account>,
    /// A Linux guest's own counters at the end.
    pub guest_counters: Option<BTreeMap<String, u64>>,
    /// How fast the hot loops get their translations back, where that was looked at.
    pub refill: Option<Refill>,
    /// What happened, for the event log.
    pub events: Option<Box<TrialEvents>>,
    /// What the reader must know of it.
    pub warnings: Vec<String>,
}

impl Measured {
    /// Adds another trial of the same row: its times, its rates, its warnings; its counts must agree.
    pub fn pool(&mut self, other: Self) {
        let mut differences = self.counts.differences(&other.counts);
        if let (Some(mine), Some(theirs)) = (&mut self.kernel, &other.kernel) {
            let [a, b] = [&*mine, theirs].map(|account| account.of(RangeCause::Step).ranges);
            if a != b {
                differences.push(format!("kernel_ranges {a} and {b}"));
            }
            mine.pool(theirs);
        }
        if !differences.is_empty() {
            self.warnings.push(format!("counts differ between repetitions: {}", differences.join(", ")));
        }
        self.counts.repeated += other.counts.repeated;
        self.counts.integrity_errors += other.counts.integrity_errors;
        self.counts.lost_records += other.counts.lost_records;
        self.counts.lost_stalls += other.counts.lost_stalls;
        self.times.pool(&other.times);
        self.guest_counters = other.guest_counters.or(self.guest_counters.take());
        let both = |a: Option<Rate>, b: Option<Rate>| match (a, b) {
            (Some(a), Some(b)) => Some(a.and(b)),
            (one, other) => one.or(other),
        };
        self.before = both(self.before, other.before);
        self.during = both(self.during, other.during);
        for warning in other.warnings {
            if !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_pool_times_and_report_counts_that_differ() {
        let mut first = Measured::default();
        first.times.zap.record(1_000);
        first.counts.victims = 4;
        let mut second = first.clone();
        second.before = Some(Rate { touches: 10, ns: 5 });
        first.pool(second.clone());
        assert_eq!((first.times.zap.count(), first.warnings.len()), (2, 0));
        second.counts.evicted_bytes = 4096;
        second.counts.integrity_errors = 1;
        first.pool(second);
        assert_eq!(first.warnings, ["counts differ between repetitions: evicted_bytes 0 and 4096"]);
        assert_eq!(first.counts.integrity_errors, 1);
        assert_eq!(first.before.and_then(Rate::per_second), Some(2e9));
    }
}
