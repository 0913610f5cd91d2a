//! The descriptor after its handshake, and the ioctls that resolve faults.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use guest_mem::{Hva, HvaRange, Region};
use rustix::io::Errno;

use crate::abi::{
    self, UffdioContinue, UffdioCopy, UffdioMove, UffdioRange, UffdioWriteprotect, UffdioZeropage,
};
use crate::buffer::{EventBuffer, ReadError};
use crate::features::Features;
use crate::open::{self, Faults, OpenError};
use crate::resolve::{Action, ResolveError, outcome};
use crate::sys;

/// Whether threads that wait for the pages of a range are woken, or stay asleep for [`Userfault::wake`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wake {
    /// Woken at once: the threads that wait for the resolved pages.
    Yes,
    /// Left asleep, so that several ranges cost one wake-up.
    No,
}

/// How a page is put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MapAs {
    /// As the mapping allows.
    Writable,
    /// Write-protected from the first moment. The range must be registered for it.
    WriteProtected,
}

/// A userfaultfd after its handshake, non-blocking, closed when dropped: the kernel then wakes all waiting threads, and their
/// pages become ordinary pages.
///
/// All methods may be called by any number of threads at once.
#[derive(Debug)]
pub struct Userfault {
    pub(crate) fd: OwnedFd,
    pub(crate) features: Features,
}

impl Userfault {
    /// Opens one that serves a guest's faults, with these features on.
    ///
    /// # Errors
    /// The host does not let us, or the kernel lacks a feature: the error names which, and the remedy.
    pub fn open(features: Features) -> Result<Self, OpenError> {
        Self::open_for(Faults::All, features)
    }

    /// Opens one that sees these faults, with these features on.
    pub fn open_for(faults: Faults, features: Features) -> Result<Self, OpenError> {
        let fd = open::open(faults)?;
        let features = open::handshake(fd.as_fd(), features)?;
        Ok(Self { fd, features })
    }

    /// The features that are on.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Fills the missing pages at `dst` with copies of `src`, which is as long as they are.
    ///
    /// # Errors
    /// Not all was copied: see [`ResolveError::done`].
    pub fn copy(&self, dst: Hva, src: &[u8], map_as: MapAs, wake: Wake) -> Result<(), ResolveError> {
        let range = destination(dst, src.len() as u64);
        let (len, mode) = (src.len() as u64, map_as_bits(map_as) | wake_bits(wake));
        let mut argument = UffdioCopy { dst: dst.get(), src: src.as_ptr() as u64, len, mode, copy: 0 };
        let returned = sys::copy(self.fd.as_fd(), &mut argument);
        outcome(Action::Copy, range, returned, argument.copy)
    }

    /// Fills missing pages with zeroes: with the zero page, which costs no memory, where the memory is anonymous.
    ///
    /// # Errors
    /// Not all was filled. [`crate::ResolveKind::Exists`] also stands for a missing page that is write-protected,
    /// for which only a copy will do.
    pub fn zero(&self, range: HvaRange, wake: Wake) -> Result<(), ResolveError> {
        let mut argument = UffdioZeropage { range: plain(range), mode: wake_bits(wake), zeropage: 0 };
        let returned = sys::zeropage(self.fd.as_fd(), &mut argument);
        outcome(Action::Zero, range, returned, argument.zeropage)
    }

    /// Maps the pages that are in the page cache.
    ///
    /// # Errors
    /// Not all were mapped: [`crate::ResolveKind::Unreadable`] is a page the cache does not have.
    pub fn continue_(&self, range: HvaRange, map_as: MapAs, wake: Wake) -> Result<(), ResolveError> {
        let mode = map_as_bits(map_as) | wake_bits(wake);
        let mut argument = UffdioContinue { range: plain(range), mode, mapped: 0 };
        let returned = sys::continue_(self.fd.as_fd(), &mut argument);
        outcome(Action::Continue, range, returned, argument.mapped)
    }

    /// Fills the missing pages at `dst` with the pages of `src` themselves, which is empty afterwards. Both are
    /// private anonymous memory of this process, in one mapping each. A PMD-mapped 2 MiB page stays one if both
    /// places are aligned and at least 2 MiB are moved; otherwise it is split. Needs [`Features::MOVE`] on the
    /// host, though not in [`Userfault::features`].
    ///
    /// The source range is announced to secondary MMUs, and the kernel retries by itself while pages are in motion. A
    /// fork keeps pages from moving, see [`crate::ResolveKind::Busy`]: `MADV_DONTFORK` on the source prevents that.
    ///
    /// # Errors
    /// Not all was moved, or `src` does not fit its region.
    pub fn move_pages(
        &self,
        dst: Hva,
        region: &Region,
        src: HvaRange,
        wake: Wake,
    ) -> Result<(), ResolveError> {
        let range = destination(dst, src.len());
        if region.check(src).is_err() {
            return outcome(Action::Move, range, Err(Errno::INVAL), 0);
        }
        let (start, len, mode) = (src.start().get(), src.len(), wake_bits(wake));
        let mut argument = UffdioMove { dst: dst.get(), src: start, len, mode, move_: 0 };
        // SAFETY: pages of a region, into which no reference ever exists.
        let returned = unsafe { sys::move_pages(self.fd.as_fd(), &mut argument) };
        outcome(Action::Move, range, returned, argument.move_)
    }

    /// Makes the next write to each page a fault. Wakes no thread.
    ///
    /// # Errors
    /// Some of it is not registered for that, or a mapping changes. A part may have been done; it may be
    /// repeated.
    pub fn write_protect(&self, range: HvaRange) -> Result<(), ResolveError> {
        self.change_protection(Action::WriteProtect, range, abi::UFFDIO_WRITEPROTECT_MODE_WP)
    }

    /// Lets pages be written again.
    pub fn write_unprotect(&self, range: HvaRange, wake: Wake) -> Result<(), ResolveError> {
        let mode = match wake {
            Wake::Yes => 0,
            Wake::No => abi::UFFDIO_WRITEPROTECT_MODE_DONTWAKE,
        };
        self.change_protection(Action::WriteUnprotect, range, mode)
    }

    fn change_protection(&self, action: Action, range: HvaRange, mode: u64) -> Result<(), ResolveError> {
        let mut argument = UffdioWriteprotect { range: plain(range), mode };
        outcome(action, range, sys::write_protect(self.fd.as_fd(), &mut argument), 0)
    }

    /// Wakes the threads that wait for a page of the range, whatever its state: they fault again if it is missing.
    ///
    /// # Errors
    /// An empty or unaligned range.
    pub fn wake(&self, range: HvaRange) -> Result<(), ResolveError> {
        outcome(Action::Wake, range, sys::wake(self.fd.as_fd(), &mut plain(range)), 0)
    }

    /// Reads what messages there are behind those that `buffer` still holds, without waiting. Faults come before events,
    /// whichever came first; each kind is in order.
    ///
    /// A message is read once: the thread of its fault waits for this reader, the thread of its event goes on.
    pub fn read_events(&self, buffer: &mut EventBuffer) -> Result<(), ReadError> {
        buffer.fill(self.fd.as_fd())
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A range as the kernel's structure.
pub(crate) fn plain(range: HvaRange) -> UffdioRange {
    UffdioRange { start: range.start().get(), len: range.len() }
}

/// The range named in an error. The kernel refuses a range that wraps; it is then empty.
fn destination(dst: Hva, len: u64) -> HvaRange {
    HvaRange::with_len(dst, len).unwrap_or(HvaRange::empty(dst))
}

fn wake_bits(wake: Wake) -> u64 {
    match wake {
        Wake::Yes => 0,
        Wake::No => abi::UFFDIO_MODE_DONTWAKE,
    }
}

fn map_as_bits(map_as: MapAs) -> u64 {
    match map_as {
        MapAs::Writable => 0,
        MapAs::WriteProtected => abi::UFFDIO_MODE_WP,
    }
}
