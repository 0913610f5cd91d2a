//! The one clock of every record: `CLOCK_MONOTONIC`, in nanoseconds, read through the vDSO.
//!
//! Raw nanoseconds and not [`std::time::Instant`]: records are compared with the kernel's tracepoints, which perf
//! stamps with this clock when asked to.

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[inline]
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use rustix::time::{ClockId, clock_gettime};

    #[test]
    fn it_is_the_kernels_clock_in_nanoseconds() {
        let read = || {
            i128::try_from(
                std::time::Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap().as_nanos(),
            )
            .unwrap()
        };
        let (before, now, after) = (read(), super::monotonic_ns(), read());
        assert!((before..=after).contains(&now.into()), "{now} is not between {before} and {after}");
    }

    #[test]
    fn time_does_not_run_backwards() {
        let (first, second) = (super::monotonic_ns(), super::monotonic_ns());
        assert!(0 < first && first <= second);
    }
}
