//! The system calls of this crate, and nothing else.

use rustix::io::Errno;

/// Keeps the calling thread from preempting others when it wakes (`SCHED_BATCH`). Every thread may do so, except one of a
/// real-time class.
pub(crate) fn yield_to_others() -> Result<(), Errno> {
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: the structure lives across the call, which changes only how this thread is scheduled.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const priority) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)),
    }
}

/// How many pages of a range are resident.
#[cfg(test)]
pub(crate) fn resident(range: guest_mem::HvaRange) -> usize {
    let mut pages = vec![0; range.page_count() as usize];
    // SAFETY: there is a byte for each page of the range, and mincore only reads page tables.
    let done = unsafe { libc::mincore(range.start().as_ptr(), range.len() as usize, pages.as_mut_ptr()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    pages.iter().filter(|&&page| page & 1 == 1).count()
}
