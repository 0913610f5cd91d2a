//! A hit of a tracepoint, as the kernel wrote it.

/// One hit of a tracepoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample<'a> {
    /// When: `CLOCK_MONOTONIC`, nanoseconds.
    pub time_ns: u64,
    /// The process in whose context; 0 where the source does not say.
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// The tracepoint's record, as its format describes it; padding may follow.
    pub raw: &'a [u8],
}
