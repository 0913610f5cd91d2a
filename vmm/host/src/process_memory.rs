//! The memory of another process.

use std::os::fd::{AsRawFd, BorrowedFd};

use guest_mem::{Hva, HvaRange};
use rustix::io::Errno;

use crate::tracefs::last_errno;

/// Advises the kernel to page out a range of the process of `pidfd`. The kernel skips pages that are in use, locked or shared,
/// and does not report them.
///
/// # Errors
/// The rest of the range, and the kernel's answer.
pub fn page_out_process(pidfd: BorrowedFd<'_>, range: HvaRange) -> Result<(), (HvaRange, Errno)> {
    let mut rest = range;
    while !rest.is_empty() {
        let vector = libc::iovec { iov_base: rest.start().as_ptr(), iov_len: rest.len() as usize };
        let (pidfd, vector) = (pidfd.as_raw_fd(), &raw const vector);
        // SAFETY: the kernel reads one element; its addresses are of another process and are not accessed here.
        let advised =
            unsafe { libc::syscall(libc::SYS_process_madvise, pidfd, vector, 1, libc::MADV_PAGEOUT, 0) };
        match (u64::try_from(advised), last_errno()) {
            (Ok(0), _) => return Ok(()),
            (Ok(advised), _) => {
                let done = Hva::new(rest.start().get() + advised.min(rest.len()));
                rest = HvaRange::new(done, rest.end()).unwrap_or(HvaRange::empty(rest.end()));
            }
            (Err(_), Errno::INTR) => {}
            (Err(_), errno) => return Err((rest, errno)),
        }
    }
    Ok(())
}
