//! Children: as process 1, the agent inherits every process whose parent has ended.

use std::io;
use std::mem;
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::process::{WaitOptions, wait};

/// SIGCHLD as a descriptor: readable when a child has ended.
pub struct Children(OwnedFd);

impl Children {
    /// Blocks the signal; to be called before there is a second thread, which inherits that.
    pub fn watch() -> io::Result<Self> {
        // SAFETY: all zeros is a valid set, and is made an empty one first.
        let mut set: libc::sigset_t = unsafe { mem::zeroed() };
        // SAFETY: the set is this function's.
        unsafe { libc::sigemptyset(&mut set) };
        // SAFETY: as above; the signal exists.
        unsafe { libc::sigaddset(&mut set, libc::SIGCHLD) };
        // SAFETY: as above.
        if unsafe { libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just opened, and owned by this value alone.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// What to poll.
    pub fn fd(&self) -> &OwnedFd {
        &self.0
    }

    /// Calls `each` with the process and the status of every child that has ended.
    pub fn reap(&self, mut each: impl FnMut(i32, i32)) {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        while matches!(rustix::io::read(&self.0, &mut info), Ok(1..)) {}
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            each(pid.as_raw_nonzero().get(), status.as_raw());
        }
    }
}
