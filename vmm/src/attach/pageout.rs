//! Pushing another process's memory out: `process_madvise`.

use std::os::fd::{AsFd, AsRawFd};

use guest_mem::{Hva, HvaRange};
use rustix::io::Errno;

use crate::exit::{Class, Classified};
use crate::tap::tracefs::last_errno;

/// Why memory could not be pushed out.
#[derive(Debug, thiserror::Error)]
pub enum PageoutError {
    /// We may not.
    #[error(
        "the memory of another process is paged out with CAP_SYS_NICE and the right to look at it: run as root"
    )]
    Refused,
    /// The kernel has no such call.
    #[error("this kernel has no process_madvise: Linux 5.10 brought it")]
    NoCall,
    /// Something else.
    #[error("process_madvise(MADV_PAGEOUT) of {range}")]
    Call {
        /// What was left.
        range: HvaRange,
        /// What the kernel said.
        source: Errno,
    },
}

impl Classified for PageoutError {
    fn class(&self) -> Class {
        match self {
            Self::Refused | Self::NoCall => Class::Host,
            Self::Call { source, .. } => Class::of_refusal(*source),
        }
    }
}

/// Advises the kernel to page out a range of the process that `pidfd` stands for. It passes over what is in use, locked or
/// shared, and does not say so.
///
/// # Errors
/// [`PageoutError`].
pub fn page_out(pidfd: impl AsFd, range: HvaRange) -> Result<(), PageoutError> {
    let mut rest = range;
    while !rest.is_empty() {
        let vector = libc::iovec { iov_base: rest.start().as_ptr(), iov_len: rest.len() as usize };
        // SAFETY: one element, which the kernel reads; the addresses in it are another process's and not touched here.
        let advised = unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                pidfd.as_fd().as_raw_fd(),
                &raw const vector,
                1,
                libc::MADV_PAGEOUT,
                0,
            )
        };
        let advised = match (u64::try_from(advised), last_errno()) {
            (Ok(0), _) => return Ok(()),
            (Ok(advised), _) => advised,
            (Err(_), Errno::INTR) => continue,
            (Err(_), Errno::PERM | Errno::ACCESS) => return Err(PageoutError::Refused),
            (Err(_), Errno::NOSYS) => return Err(PageoutError::NoCall),
            (Err(_), source) => return Err(PageoutError::Call { range: rest, source }),
        };
        let done = rest.start().get() + advised.min(rest.len());
        rest = HvaRange::new(Hva::new(done), rest.end()).unwrap_or(HvaRange::empty(rest.end()));
    }
    Ok(())
}
