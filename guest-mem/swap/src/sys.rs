//! The system calls of this crate on memory and threads, and nothing else.

use guest_mem::{Address, Hva, HvaRange, PMD_SIZE};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// Maps `len` bytes of private, anonymous, readable and writable memory. Of 2 MiB or more it begins at a multiple of
/// 2 MiB.
pub(crate) fn map(len: u64) -> Result<HvaRange, Errno> {
    let range = if len < PMD_SIZE { reserve(len)? } else { reserve_aligned(len)? };
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
    let (at, fixed) = (range.start().as_ptr(), flags | MapFlags::FIXED);
    // SAFETY: MAP_FIXED replaces what was reserved a moment ago: it is ours and holds nothing.
    let mapped = unsafe { rustix::mm::mmap_anonymous(at, range.len() as usize, access, fixed) };
    match mapped {
        Ok(_) => Ok(range),
        Err(errno) => {
            // SAFETY: as above, and nobody has got the range.
            let _ = unsafe { unmap(range) };
            Err(errno)
        }
    }
}

/// Reserves `len` bytes of address space that hold nothing.
fn reserve(len: u64) -> Result<HvaRange, Errno> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: without MAP_FIXED a new mapping cannot touch an existing one.
    let at =
        unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len as usize, ProtFlags::empty(), flags) }?;
    HvaRange::with_len(Hva::of(at), len).ok_or(Errno::NOMEM)
}

/// The same at a multiple of 2 MiB: reserves 2 MiB too much and gives the ends back.
fn reserve_aligned(len: u64) -> Result<HvaRange, Errno> {
    let wide = reserve(len + PMD_SIZE)?;
    let start = wide.start().checked_align_up(PMD_SIZE).ok_or(Errno::NOMEM)?;
    let range = HvaRange::with_len(start, len).ok_or(Errno::NOMEM)?;
    let outside = [HvaRange::new(wide.start(), range.start()), HvaRange::new(range.end(), wide.end())];
    for end in outside.into_iter().flatten().filter(|end| !end.is_empty()) {
        // SAFETY: part of the reservation, which is ours and holds nothing.
        unsafe { unmap(end) }?;
    }
    Ok(range)
}

/// munmap.
///
/// # Safety
/// `range` belongs to the caller and is not used again.
pub(crate) unsafe fn unmap(range: HvaRange) -> Result<(), Errno> {
    // SAFETY: the caller vouches for the range.
    unsafe { rustix::mm::munmap(range.start().as_ptr(), range.len() as usize) }
}

/// madvise.
///
/// # Safety
/// `range` lies in a mapping that belongs to the caller, and nobody holds a reference into what the advice discards.
pub(crate) unsafe fn advise(range: HvaRange, advice: Advice) -> Result<(), Errno> {
    // SAFETY: the caller vouches for the range.
    unsafe { rustix::mm::madvise(range.start().as_ptr(), range.len() as usize, advice) }
}

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
pub(crate) fn resident(range: HvaRange) -> usize {
    let mut pages = vec![0; range.page_count() as usize];
    // SAFETY: there is a byte for each page of the range, and mincore only reads page tables.
    let done = unsafe { libc::mincore(range.start().as_ptr(), range.len() as usize, pages.as_mut_ptr()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    pages.iter().filter(|&&page| page & 1 == 1).count()
}
