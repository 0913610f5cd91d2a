//! The system calls of this crate: the only place with `unsafe` ioctls, each with a typed structure.
//!
//! They are sound for the same reason: the argument of each function is the kernel's structure for its request, and
//! lives across the call. The *effect* on memory is limited by registering: only registered mappings are ever filled,
//! and only regions are registered.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater};
use rustix::mm::{UserfaultfdFlags, userfaultfd};

use crate::abi::{
    self, UffdioApi, UffdioContinue, UffdioCopy, UffdioMove, UffdioRange, UffdioRegister, UffdioWriteprotect,
    UffdioZeropage,
};

/// The device that gives a descriptor which sees all faults, by file permissions.
pub(crate) const DEVICE: &str = "/dev/userfaultfd";

/// `O_NONBLOCK`, because poll(2) reports nothing but an error without it.
const FLAGS: UserfaultfdFlags = UserfaultfdFlags::CLOEXEC.union(UserfaultfdFlags::NONBLOCK);

/// One ioctl, not repeated whatever it says.
///
/// # Safety
/// `A` is the request's structure. What the request does to memory is allowed: there is no Rust reference into what it
/// changes.
unsafe fn ioctl<const REQUEST: Opcode, A>(fd: BorrowedFd<'_>, argument: &mut A) -> Result<(), Errno> {
    const { assert!((REQUEST >> 16) as usize % (1 << 14) == size_of::<A>(), "the size in the request") };
    // SAFETY: the structure goes with the request, says the caller.
    let call = unsafe { Updater::<REQUEST, A>::new(argument) };
    // SAFETY: the structure is exclusively borrowed; the caller vouches for what happens to memory.
    unsafe { rustix::ioctl::ioctl(fd, call) }
}

/// A descriptor from the device, which sees all faults.
pub(crate) fn open_by_device() -> Result<OwnedFd, Errno> {
    let failed = |error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let device = OpenOptions::new().read(true).write(true).open(DEVICE).map_err(failed)?;
    // SAFETY: the request takes flags by value and returns a new descriptor or an error.
    let raw = unsafe { libc::ioctl(device.as_raw_fd(), abi::USERFAULTFD_IOC_NEW.into(), FLAGS.bits()) };
    if raw < 0 {
        return Err(failed(std::io::Error::last_os_error()));
    }
    // SAFETY: the kernel has just made this descriptor for us, and it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// A descriptor from the system call.
pub(crate) fn open_by_syscall(user_mode_only: bool) -> Result<OwnedFd, Errno> {
    let flags = if user_mode_only { FLAGS | abi::UFFD_USER_MODE_ONLY } else { FLAGS };
    // SAFETY: without a registration the descriptor reaches no memory; see the functions below.
    unsafe { userfaultfd(flags) }
}

/// The handshake: once for each descriptor, before anything else.
pub(crate) fn api(fd: BorrowedFd<'_>, argument: &mut UffdioApi) -> Result<(), Errno> {
    // SAFETY: changes no memory but the argument.
    unsafe { ioctl::<{ abi::UFFDIO_API }, _>(fd, argument) }
}

/// Registers a mapping.
///
/// # Safety
/// As long as the range stays registered no Rust reference into it is made: its pages appear and vanish, and a touch
/// may wait for another thread.
pub(crate) unsafe fn register(fd: BorrowedFd<'_>, argument: &mut UffdioRegister) -> Result<(), Errno> {
    // SAFETY: the caller's contract.
    unsafe { ioctl::<{ abi::UFFDIO_REGISTER }, _>(fd, argument) }
}

/// Unregisters a mapping.
pub(crate) fn unregister(fd: BorrowedFd<'_>, argument: &mut UffdioRange) -> Result<(), Errno> {
    // SAFETY: changes no content.
    unsafe { ioctl::<{ abi::UFFDIO_UNREGISTER }, _>(fd, argument) }
}

/// Wakes the threads that wait in a range.
pub(crate) fn wake(fd: BorrowedFd<'_>, argument: &mut UffdioRange) -> Result<(), Errno> {
    // SAFETY: changes no memory.
    unsafe { ioctl::<{ abi::UFFDIO_WAKE }, _>(fd, argument) }
}

/// Fills missing pages with copies.
pub(crate) fn copy(fd: BorrowedFd<'_>, argument: &mut UffdioCopy) -> Result<(), Errno> {
    // SAFETY: the kernel fills only what is registered with a userfaultfd, into which there are no references.
    unsafe { ioctl::<{ abi::UFFDIO_COPY }, _>(fd, argument) }
}

/// Fills missing pages with other pages, which leave their place.
///
/// # Safety
/// The source belongs to the caller and there is no reference into it: it is empty afterwards.
pub(crate) unsafe fn move_pages(fd: BorrowedFd<'_>, argument: &mut UffdioMove) -> Result<(), Errno> {
    // SAFETY: the destination must be registered, as for a copy; the source is vouched for by the caller.
    unsafe { ioctl::<{ abi::UFFDIO_MOVE }, _>(fd, argument) }
}

/// Fills missing pages with zeros.
pub(crate) fn zeropage(fd: BorrowedFd<'_>, argument: &mut UffdioZeropage) -> Result<(), Errno> {
    // SAFETY: as for a copy: only registered mappings are filled.
    unsafe { ioctl::<{ abi::UFFDIO_ZEROPAGE }, _>(fd, argument) }
}

/// Maps pages that are in the page cache.
pub(crate) fn continue_(fd: BorrowedFd<'_>, argument: &mut UffdioContinue) -> Result<(), Errno> {
    // SAFETY: as for a copy: only registered mappings are filled.
    unsafe { ioctl::<{ abi::UFFDIO_CONTINUE }, _>(fd, argument) }
}

/// Sets or takes away write protection.
pub(crate) fn write_protect(fd: BorrowedFd<'_>, argument: &mut UffdioWriteprotect) -> Result<(), Errno> {
    // SAFETY: changes no content, and only in mappings registered for it.
    unsafe { ioctl::<{ abi::UFFDIO_WRITEPROTECT }, _>(fd, argument) }
}
