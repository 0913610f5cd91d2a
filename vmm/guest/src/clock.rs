//! The two clocks: the TSC, in which guests time their touches, and `CLOCK_MONOTONIC`.

use std::time::Duration;

use notifier_bridge::monotonic_ns;

pub use guest_abi::arch::tsc;

/// How fast the TSC runs, measured against `CLOCK_MONOTONIC` from the value's making to its use.
#[derive(Clone, Copy, Debug)]
pub struct TscRate {
    ticks: u64,
    at_ns: u64,
}

/// Below this the two readings' own cost is more than a thousandth of the span.
const SHORTEST: Duration = Duration::from_millis(1);

impl TscRate {
    /// Begins to measure.
    pub fn begin() -> Self {
        Self { ticks: tsc(), at_ns: monotonic_ns() }
    }

    /// Ticks a second, so far; waits if next to no time has passed.
    pub fn hertz(&self) -> f64 {
        while monotonic_ns() - self.at_ns < SHORTEST.as_nanos() as u64 {
            std::hint::spin_loop();
        }
        let (ticks, ns) = (tsc() - self.ticks, monotonic_ns() - self.at_ns);
        ticks as f64 * 1e9 / ns as f64
    }

    /// The ticks of `time`.
    pub fn ticks(&self, time: Duration) -> u64 {
        (time.as_secs_f64() * self.hertz()) as u64
    }

    /// The nanoseconds of `ticks`.
    pub fn nanoseconds(&self, ticks: u64) -> u64 {
        (ticks as f64 * 1e9 / self.hertz()) as u64
    }
}

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// The TSC.
    pub ticks: u64,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub ns: u64,
}

impl Moment {
    /// Now. Of a few readings the shortest one: a thread that is interrupted between the clocks reads two moments.
    pub fn now() -> Self {
        let read = || {
            let (before, ns, after) = (tsc(), monotonic_ns(), tsc());
            (
                after.wrapping_sub(before),
                Self { ticks: before.wrapping_add(after.wrapping_sub(before) / 2), ns },
            )
        };
        (0..3)
            .map(|_| read())
            .min_by_key(|(took, _)| *took)
            .map(|(_, moment)| moment)
            .expect("three were read")
    }

    /// When the TSC stood at `ticks`, between this moment and a `later` one; at or beyond them, that.
    ///
    /// One rate for all of a run would not do: the kernel slews its clock, and emulated counters wander.
    pub fn interpolate(self, later: Self, ticks: u64) -> u64 {
        let span = later.ticks.saturating_sub(self.ticks).max(1);
        let since = ticks.saturating_sub(self.ticks).min(span);
        let ns = later.ns.saturating_sub(self.ns);
        self.ns + (u128::from(ns) * u128::from(since) / u128::from(span)) as u64
    }
}

/// How a guest's counter stands to the host's, as far as orders tell: it began one after it was given, and had ended it
/// before its end was heard of.
///
/// ```text
///   host    given ─────────────────────────────── heard of
///   guest          begun ─────────────── ended
///   guest - host   at most begun - given,  at least ended - heard of
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetBounds {
    least: i64,
    most: i64,
}

/// A guest's counter less the host's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offset {
    /// Ticks.
    pub ticks: i64,
    /// It may be off by so many ticks either way; 0 where the guest reads the host's own counter.
    pub uncertain: u64,
}

impl Default for OffsetBounds {
    fn default() -> Self {
        Self { least: i64::MIN, most: i64::MAX }
    }
}

impl OffsetBounds {
    /// What one order tells: by the host's counter given and heard of, by the guest's begun and ended.
    pub fn narrow(&mut self, (given, heard): (u64, u64), (begun, ended): (u64, u64)) {
        self.least = self.least.max(ended.wrapping_sub(heard) as i64);
        self.most = self.most.min(begun.wrapping_sub(given) as i64);
    }

    /// The offset: none at all if that is possible, else the middle; `None` before the first order, or if orders
    /// contradict each other: then the guest's processors do not keep one time.
    pub fn offset(self) -> Option<Offset> {
        if self == Self::default() || self.least > self.most {
            return None;
        }
        if self.least <= 0 && 0 <= self.most {
            return Some(Offset::default());
        }
        let uncertain = self.most.abs_diff(self.least) / 2;
        Some(Offset { ticks: self.least.saturating_add_unsigned(uncertain), uncertain })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_narrow_the_offset() {
        let mut bounds = OffsetBounds::default();
        assert_eq!(bounds.offset(), None);
        // The guest is 1000 ahead; it begins 30 late, and its end is heard of 50 late.
        bounds.narrow((100, 280), (1130, 1230));
        assert_eq!(bounds.offset(), Some(Offset { ticks: 990, uncertain: 40 }));
        bounds.narrow((500, 620), (1510, 1615));
        assert_eq!(bounds.offset(), Some(Offset { ticks: 1002, uncertain: 7 }));
        bounds.narrow((500, 620), (1800, 1900));
        assert_eq!(bounds.offset(), None);
    }

    #[test]
    fn a_counter_that_can_be_the_hosts_is() {
        let mut bounds = OffsetBounds::default();
        bounds.narrow((100, 200), (101, 160));
        assert_eq!(bounds.offset(), Some(Offset::default()));
    }

    #[test]
    fn a_moment_between_two_is_between_them() {
        let (a, b) = (Moment { ticks: 1_000, ns: 500 }, Moment { ticks: 3_000, ns: 1_500 });
        let at = |ticks| a.interpolate(b, ticks);
        assert_eq!([0, 1_000, 1_002, 2_000, 3_000, 9_000].map(at), [500, 500, 501, 1_000, 1_500, 1_500]);
        assert_eq!(a.interpolate(a, 7_000), 500);
        let (begun, within) = (Moment::now(), tsc());
        let ended = Moment::now();
        assert!((begun.ns..=ended.ns).contains(&begun.interpolate(ended, within)));
    }
}
