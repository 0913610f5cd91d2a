//! The system calls of this crate: the only place with `unsafe` ioctls, each with a typed structure.
//!
//! They are sound for the same reason: the structure is the kernel's, or laid out like it (asserted in [`crate::abi`]), and
//! lives across the call. The *effect* on memory is limited by registering: only registered mappings are ever filled, and
//! only regions are registered.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

use crate::abi::{self, UffdioApi, UffdioCopy, UffdioFill, UffdioRange, UffdioRegister, UffdioWriteprotect};

/// The device that gives a descriptor which sees all faults, by file permissions.
pub(crate) const DEVICE: &str = "/dev/userfaultfd";

/// `O_NONBLOCK`, because poll(2) reports nothing but an error without it.
const FLAGS: i32 = libc::O_CLOEXEC | libc::O_NONBLOCK;

/// A structure that an ioctl of a userfaultfd takes, by the numbers it goes with.
///
/// # Safety
/// The structure is laid out as the kernel's for each of these requests.
unsafe trait Argument {
    const REQUESTS: &'static [u64];
}

// SAFETY: it is the structure of this request.
unsafe impl Argument for UffdioApi {
    const REQUESTS: &'static [u64] = &[abi::UFFDIO_API];
}
// SAFETY: it is the structure of this request.
unsafe impl Argument for UffdioRegister {
    const REQUESTS: &'static [u64] = &[abi::UFFDIO_REGISTER];
}
// SAFETY: it is the structure of both requests.
unsafe impl Argument for UffdioRange {
    const REQUESTS: &'static [u64] = &[abi::UFFDIO_UNREGISTER, abi::UFFDIO_WAKE];
}
// SAFETY: it is the structure of the first, and `abi` asserts that the others are laid out the same.
unsafe impl Argument for UffdioCopy {
    const REQUESTS: &'static [u64] = &[abi::UFFDIO_COPY, abi::UFFDIO_MOVE];
}
// SAFETY: it is the structure of the first, and `abi` asserts that the others are laid out the same.
unsafe impl Argument for UffdioFill {
    const REQUESTS: &'static [u64] = &[abi::UFFDIO_ZEROPAGE, abi::UFFDIO_CONTINUE];
}
// SAFETY: it is the structure of this request.
unsafe impl Argument for UffdioWriteprotect {
    const REQUESTS: &'static [u64] = &[abi::UFFDIO_WRITEPROTECT];
}

/// One ioctl, not repeated whatever it says.
///
/// # Safety
/// What the request does to memory is allowed: nobody holds a Rust reference into what it changes.
unsafe fn ioctl<A: Argument>(fd: BorrowedFd<'_>, request: u64, argument: &mut A) -> Result<(), Errno> {
    debug_assert!(A::REQUESTS.contains(&request), "the structure goes with the request");
    // SAFETY: the structure is the one this request takes and is exclusively borrowed; what happens to memory is
    // vouched for by the caller.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) };
    if done < 0 { Err(last_errno()) } else { Ok(()) }
}

fn last_errno() -> Errno {
    // The cast cannot fail: the value was just taken from errno, which is small and positive.
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

/// A descriptor from the device, which sees all faults.
pub(crate) fn open_by_device() -> Result<OwnedFd, Errno> {
    let device = OpenOptions::new().read(true).write(true).open(DEVICE);
    let device = device.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    // SAFETY: the request takes flags by value and returns a new descriptor or an error.
    let raw = unsafe { libc::ioctl(device.as_raw_fd(), abi::USERFAULTFD_IOC_NEW, FLAGS) };
    owned(raw)
}

/// A descriptor from the system call.
pub(crate) fn open_by_syscall(user_mode_only: bool) -> Result<OwnedFd, Errno> {
    let flags = if user_mode_only { FLAGS | abi::UFFD_USER_MODE_ONLY } else { FLAGS };
    // SAFETY: the call takes flags and returns a new descriptor or an error.
    let raw = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    owned(raw as RawFd)
}

fn owned(raw: RawFd) -> Result<OwnedFd, Errno> {
    if raw < 0 {
        return Err(last_errno());
    }
    // SAFETY: the kernel has just made this descriptor for us, and it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// The handshake: once for each descriptor, before anything else.
pub(crate) fn api(fd: BorrowedFd<'_>, argument: &mut UffdioApi) -> Result<(), Errno> {
    // SAFETY: changes no memory but the argument.
    unsafe { ioctl(fd, abi::UFFDIO_API, argument) }
}

/// Registers a mapping.
///
/// # Safety
/// As long as the range stays registered nobody makes a Rust reference into it: its pages appear and vanish, and
/// a touch may wait for another thread.
pub(crate) unsafe fn register(fd: BorrowedFd<'_>, argument: &mut UffdioRegister) -> Result<(), Errno> {
    // SAFETY: the caller's contract.
    unsafe { ioctl(fd, abi::UFFDIO_REGISTER, argument) }
}

/// Unregisters a mapping.
pub(crate) fn unregister(fd: BorrowedFd<'_>, argument: &mut UffdioRange) -> Result<(), Errno> {
    // SAFETY: changes no content.
    unsafe { ioctl(fd, abi::UFFDIO_UNREGISTER, argument) }
}

/// Wakes the threads that wait in a range.
pub(crate) fn wake(fd: BorrowedFd<'_>, argument: &mut UffdioRange) -> Result<(), Errno> {
    // SAFETY: changes no memory.
    unsafe { ioctl(fd, abi::UFFDIO_WAKE, argument) }
}

/// Fills missing pages with copies.
pub(crate) fn copy(fd: BorrowedFd<'_>, argument: &mut UffdioCopy) -> Result<(), Errno> {
    // SAFETY: the kernel fills only what is registered with a userfaultfd, into which nobody has references.
    unsafe { ioctl(fd, abi::UFFDIO_COPY, argument) }
}

/// Fills missing pages with other pages, which leave their place.
///
/// # Safety
/// The source belongs to the caller and nobody holds a reference into it: it is empty afterwards.
pub(crate) unsafe fn move_pages(fd: BorrowedFd<'_>, argument: &mut UffdioCopy) -> Result<(), Errno> {
    // SAFETY: the destination must be registered, as for a copy; the source is vouched for by the caller.
    unsafe { ioctl(fd, abi::UFFDIO_MOVE, argument) }
}

/// `UFFDIO_ZEROPAGE` or `UFFDIO_CONTINUE`.
pub(crate) fn fill(fd: BorrowedFd<'_>, request: u64, argument: &mut UffdioFill) -> Result<(), Errno> {
    // SAFETY: as for a copy: only registered mappings are filled.
    unsafe { ioctl(fd, request, argument) }
}

/// Sets or takes away write protection.
pub(crate) fn write_protect(fd: BorrowedFd<'_>, argument: &mut UffdioWriteprotect) -> Result<(), Errno> {
    // SAFETY: changes no content, and only in mappings registered for it.
    unsafe { ioctl(fd, abi::UFFDIO_WRITEPROTECT, argument) }
}
