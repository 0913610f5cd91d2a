//! A tracefs nobody else sees: mounted nowhere, gone when its descriptor is closed. To look at it needs no
//! change to the host's mounts, only the right to mount.

use std::ffi::CStr;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::scratch::last_errno;

const FSOPEN_CLOEXEC: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSMOUNT_CLOEXEC: u32 = 1;

/// The root directory of a tracefs.
#[derive(Debug)]
pub(super) struct Tracefs(OwnedFd);

impl Tracefs {
    /// Mounts one on nothing.
    pub(super) fn detached() -> Result<Self, Errno> {
        // SAFETY: the name is NUL-terminated and only read.
        let raw = unsafe { libc::syscall(libc::SYS_fsopen, c"tracefs".as_ptr(), FSOPEN_CLOEXEC) };
        let context = owned(raw)?;
        let (null, fd) = (std::ptr::null::<u8>(), std::os::fd::AsRawFd::as_raw_fd(&context));
        // SAFETY: this command takes neither key nor value.
        let done = unsafe { libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, null, null, 0) };
        if done < 0 {
            return Err(last_errno());
        }
        // SAFETY: the call takes a descriptor and flags by value.
        let raw = unsafe { libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, 0) };
        owned(raw).map(Self)
    }

    /// The one mounted at `path`.
    pub(super) fn mounted_at(path: &str) -> Result<Self, Errno> {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map(Self)
    }

    /// The number of a tracepoint, as in `events/kvm/kvm_unmap_hva_range/id`.
    pub(super) fn event_id(&self, file: &CStr) -> Result<u64, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(self.0.as_fd(), file, flags, Mode::empty())?;
        let mut text = [0u8; 32];
        let length = rustix::io::read(&file, &mut text)?;
        let text = std::str::from_utf8(&text[..length]).map_err(|_| Errno::INVAL)?;
        text.trim().parse().map_err(|_| Errno::INVAL)
    }
}

fn owned(raw: libc::c_long) -> Result<OwnedFd, Errno> {
    match i32::try_from(raw) {
        // SAFETY: the kernel just made this descriptor for us, nobody else owns it.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(last_errno()),
    }
}
