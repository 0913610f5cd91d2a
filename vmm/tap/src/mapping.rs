//! Memory shared with the writer of a ring: the kernel, or a thread of this process in its place.

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

/// A shared mapping, unmapped when dropped. The writer may write at any time: the memory is accessed by atomics,
/// and as bytes only where the ring's protocol keeps the writer out.
#[derive(Debug)]
pub(super) struct Mapping {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is not tied to a thread; all access goes through the methods below.
unsafe impl Send for Mapping {}
// SAFETY: as above: atomics, and bytes whose owner the ring's protocol determines.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// The first `len` bytes of `file`.
    pub(super) fn of(file: BorrowedFd<'_>, len: usize) -> Result<Self, Errno> {
        Self::map(file, 0, len, ProtFlags::READ | ProtFlags::WRITE)
    }

    /// `len` bytes of `file` from `offset` on, read-only: words are read by relaxed loads.
    pub(super) fn to_read(file: BorrowedFd<'_>, offset: usize, len: usize) -> Result<Self, Errno> {
        Self::map(file, offset, len, ProtFlags::READ)
    }

    fn map(file: BorrowedFd<'_>, offset: usize, len: usize, access: ProtFlags) -> Result<Self, Errno> {
        let offset = offset as u64;
        // SAFETY: without MAP_FIXED a new mapping cannot touch an existing one.
        let at =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, access, MapFlags::SHARED, file, offset) }?;
        Ok(Self { at: NonNull::new(at.cast()).ok_or(Errno::NOMEM)?, len })
    }

    /// `len` bytes of zeros, anonymous.
    pub(super) fn anonymous(len: usize) -> Result<Self, Errno> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: without MAP_FIXED a new mapping cannot touch an existing one.
        let at = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, access, MapFlags::SHARED) }?;
        Ok(Self { at: NonNull::new(at.cast()).ok_or(Errno::NOMEM)?, len })
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The word at `offset`.
    ///
    /// # Panics
    /// If it is not inside, or not aligned.
    pub(super) fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset.checked_add(8).is_some_and(|end| end <= self.len));
        // SAFETY: the bound was just checked.
        let at = unsafe { self.at.add(offset) };
        // SAFETY: mapped as long as `self`, aligned to 8 as the mapping is to a page; reader and writer use atomics on it.
        unsafe { AtomicU64::from_ptr(at.as_ptr().cast()) }
    }

    /// The bytes from `offset` on.
    ///
    /// # Safety
    /// The writer does not write to them while the slice is used.
    ///
    /// # Panics
    /// If they are not all inside.
    pub(super) unsafe fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: the bound was just checked.
        let at = unsafe { self.at.add(offset) };
        // SAFETY: mapped and initialised; not written meanwhile, as the caller ensures.
        unsafe { std::slice::from_raw_parts(at.as_ptr(), len) }
    }

    /// Writes bytes at `offset`.
    ///
    /// # Safety
    /// The bytes are neither read nor written at the same time.
    ///
    /// # Panics
    /// If they do not fit.
    pub(super) unsafe fn put(&self, offset: usize, bytes: &[u8]) {
        assert!(offset.checked_add(bytes.len()).is_some_and(|end| end <= self.len));
        // SAFETY: the bound was just checked.
        let to = unsafe { self.at.add(offset) };
        // SAFETY: there is room for all of them; no other access, as the caller ensures.
        unsafe { to.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and every reference into it borrows `self`.
        let _ = unsafe { rustix::mm::munmap(self.at.as_ptr().cast(), self.len) };
    }
}
