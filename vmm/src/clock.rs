//! The two clocks: the TSC, in which guests time their touches, and `CLOCK_MONOTONIC`.

use std::time::Duration;

use notifier_bridge::monotonic_ns;

/// The time stamp counter; accesses before it are done, accesses after it have not begun.
pub fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has SSE2, and so the fence.
    unsafe { std::arch::x86_64::_mm_lfence() };
    // SAFETY: every x86-64 processor has the counter; reading it changes nothing.
    let now = unsafe { std::arch::x86_64::_rdtsc() };
    // SAFETY: as above.
    unsafe { std::arch::x86_64::_mm_lfence() };
    now
}

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
