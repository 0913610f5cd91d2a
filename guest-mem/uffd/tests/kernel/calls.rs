//! System calls that the tests make on memory of their own.

use std::sync::{Mutex, MutexGuard, PoisonError};

use guest_mem::{Hva, HvaRange};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags};

/// Moves the pages of a region elsewhere, and leaves nothing at their place. The kernel chooses where to.
pub fn move_away(from: HvaRange) -> HvaRange {
    let len = from.len() as usize;
    // SAFETY: without MAP_FIXED a new mapping cannot touch an existing one.
    let place = unsafe {
        rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::empty(), MapFlags::PRIVATE)
    };
    let old = from.start().as_ptr();
    // SAFETY: memory of a test, into which there are no references, goes to a place reserved for it.
    let to = unsafe { rustix::mm::mremap_fixed(old, len, len, MremapFlags::MAYMOVE, place.unwrap()) };
    HvaRange::with_len(Hva::of(to.unwrap()), from.len()).unwrap()
}

/// `MADV_DONTNEED`.
pub fn discard(range: HvaRange) {
    // SAFETY: memory of a test, into which there are no references.
    let done =
        unsafe { rustix::mm::madvise(range.start().as_ptr(), range.len() as usize, Advice::LinuxDontNeed) };
    done.unwrap();
}

/// The word at `at` as a system call sees it, which gets an errno where a thread would get a signal.
pub fn read_by_kernel(at: Hva) -> Result<u64, Errno> {
    let mut word = 0u64;
    let local = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: 8 };
    let remote = libc::iovec { iov_base: at.as_ptr(), iov_len: 8 };
    let ourselves = rustix::process::getpid().as_raw_nonzero().get();
    // SAFETY: the kernel writes eight bytes into `word`, and checks the other address itself.
    let done = unsafe { libc::process_vm_readv(ourselves, &raw const local, 1, &raw const remote, 1, 0) };
    if done == 8 {
        return Ok(word);
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap())
}

/// One test at a time that forks, or that moves pages: a fork shares the pages of all tests, which then do not move.
pub fn forking_alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forks a child that does nothing but exit.
pub fn fork_a_child() -> libc::pid_t {
    // SAFETY: as fork(2). The child only exits.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } as libc::pid_t;
    if pid == 0 {
        // SAFETY: runs no destructors.
        unsafe { libc::_exit(0) };
    }
    assert!(pid > 0);
    pid
}

/// Waits until a child is gone, its memory with it, and gives its exit code.
pub fn wait_for(pid: libc::pid_t) -> u8 {
    let mut status = 0;
    // SAFETY: writes the status of a child of ours.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert!(libc::WIFEXITED(status), "{status:#x}");
    libc::WEXITSTATUS(status) as u8
}
