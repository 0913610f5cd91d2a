//! System calls that the tests make on memory of their own.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use guest_mem::{Hva, HvaRange};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags};

/// Private anonymous memory that a test may unmap or move in pieces. What is left of it goes with it.
pub struct Mapping {
    pub range: HvaRange,
}

impl Mapping {
    pub fn new(len: u64) -> Self {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: without MAP_FIXED a new mapping cannot touch an existing one.
        let at = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), len as usize, access, MapFlags::PRIVATE)
        };
        Self { range: HvaRange::with_len(Hva::of(at.unwrap()), len).unwrap() }
    }

    /// The same number of bytes, elsewhere. The kernel chooses the place.
    pub fn move_away(&mut self) -> Hva {
        let len = self.range.len() as usize;
        // SAFETY: without MAP_FIXED a new mapping cannot touch an existing one.
        let place = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::empty(), MapFlags::PRIVATE)
        };
        let old = self.range.start().as_ptr();
        // SAFETY: this mapping's memory, into which there are no references, goes to a place reserved for it.
        let to = unsafe { rustix::mm::mremap_fixed(old, len, len, MremapFlags::MAYMOVE, place.unwrap()) };
        let to = Hva::of(to.unwrap());
        self.range = HvaRange::with_len(to, self.range.len()).unwrap();
        to
    }

    /// Unmaps the whole.
    pub fn unmap(&mut self) {
        // SAFETY: this mapping's memory, into which there are no references.
        unsafe { rustix::mm::munmap(self.range.start().as_ptr(), self.range.len() as usize) }.unwrap();
        self.range = HvaRange::empty(self.range.start());
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if !self.range.is_empty() {
            self.unmap();
        }
    }
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

/// One test at a time that forks: a fork is an event of every userfaultfd that asked for it, whichever test's it
/// is, and waits for each of their readers.
pub fn forking_alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forks a child that does nothing but exit. The call waits until the event of the fork was read.
pub fn fork_a_child() -> libc::pid_t {
    clone_a_child(libc::SIGCHLD, || 0)
}

/// Runs `work` in a child with memory of its own and with our descriptors: what it opens is ours. Its result is
/// one byte.
pub fn in_a_child_with_our_descriptors(work: impl FnOnce() -> u8) -> u8 {
    wait_for(clone_a_child(libc::CLONE_FILES | libc::SIGCHLD, work))
}

/// Not fork(3): that holds the allocator's locks while it waits, and a reader that allocates never reads.
fn clone_a_child(flags: i32, work: impl FnOnce() -> u8) -> libc::pid_t {
    // SAFETY: as fork(2). The child only makes system calls, and takes no lock that another thread may hold.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } as libc::pid_t;
    if pid == 0 {
        let result = work();
        // SAFETY: runs no destructors.
        unsafe { libc::_exit(i32::from(result)) };
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

/// Takes a descriptor that a child left behind.
pub fn left_behind(raw: RawFd) -> OwnedFd {
    // SAFETY: made by a child that is gone, and owned by nobody.
    unsafe { OwnedFd::from_raw_fd(raw) }
}
