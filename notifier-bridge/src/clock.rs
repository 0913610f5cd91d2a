//! The one clock of every record: `CLOCK_MONOTONIC`, in nanoseconds, read through the vDSO.
//!
//! Raw nanoseconds and not [`std::time::Instant`], since a record must be put beside what the kernel's
//! tracepoints say, and perf stamps them with this clock when asked to.

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[inline]
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    #[test]
    fn time_does_not_run_backwards() {
        let (first, second) = (super::monotonic_ns(), super::monotonic_ns());
        assert!(0 < first && first <= second);
    }
}
