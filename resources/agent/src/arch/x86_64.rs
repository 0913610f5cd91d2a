//! x86-64.

/// The time stamp counter; accesses before it are done, accesses after it have not begun.
#[inline(always)]
pub fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has the fence.
    unsafe { std::arch::x86_64::_mm_lfence() };
    // SAFETY: every x86-64 processor has the counter, and Linux lets programs read it.
    let now = unsafe { std::arch::x86_64::_rdtsc() };
    // SAFETY: as above.
    unsafe { std::arch::x86_64::_mm_lfence() };
    now
}
