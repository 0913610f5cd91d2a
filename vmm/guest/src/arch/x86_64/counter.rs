//! The time stamp counter.

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
