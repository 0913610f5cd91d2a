//! The descriptor after its handshake, and its ioctls.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::abi::{self, UffdioCopy, UffdioFill, UffdioRange, UffdioRegister, UffdioWriteprotect};
use super::buffer::{EventBuffer, ReadError};
use super::features::Features;
use super::open::{self, OpenError};
use super::resolve::{Action, ResolveError, outcome};
use super::sys;
use crate::address::Hva;
use crate::range::HvaRange;
use crate::region::{RangeError, Region};

/// Whether threads that wait for the pages of a range are woken, or stay asleep for [`Userfault::wake`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wake {
    /// Woken at once: those that wait for what was done.
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

/// Which pages of a registered range make their reader wait. At least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Modes {
    /// Pages that are not there.
    pub missing: bool,
    /// Pages of shared memory that are in the page cache and not mapped.
    pub minor: bool,
    /// Writes to pages that are write-protected.
    pub write_protect: bool,
}

impl Modes {
    fn bits(self) -> u64 {
        let bit = |on, bit| if on { bit } else { 0 };
        bit(self.missing, abi::UFFDIO_REGISTER_MODE_MISSING)
            | bit(self.minor, abi::UFFDIO_REGISTER_MODE_MINOR)
            | bit(self.write_protect, abi::UFFDIO_REGISTER_MODE_WP)
    }
}

/// What the kernel offers for a registered range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisteredIoctls(u64);

impl RegisteredIoctls {
    /// Whether this can be done to the range. 6.12 offers a move for every range but hugetlb, although it works on
    /// private anonymous memory alone.
    pub fn offers(self, action: Action) -> bool {
        let nr = match action {
            Action::Copy => abi::NR_COPY,
            Action::Zero => abi::NR_ZEROPAGE,
            Action::Move => abi::NR_MOVE,
            Action::Continue => abi::NR_CONTINUE,
            Action::Poison => abi::NR_POISON,
            Action::WriteProtect | Action::WriteUnprotect => abi::NR_WRITEPROTECT,
            Action::Wake => abi::NR_WAKE,
        };
        self.0 >> nr & 1 == 1
    }
}

/// Why a range could not be registered or given back.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// It does not fit the region.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// Another descriptor has it.
    #[error("registering {range}: part of it belongs to another userfaultfd")]
    Taken {
        /// What was to be registered.
        range: HvaRange,
    },
    /// A mapping of a file that may not be written.
    #[error("registering {range}: part of it may not be written")]
    ReadOnly {
        /// What was to be registered.
        range: HvaRange,
    },
    /// The kernel cannot do this for this memory.
    #[error(
        "registering {range} with {modes:?}: no mapping, no mode, or memory that this kernel cannot watch so \
         (minor faults take shared memory; write protection of that takes Linux 5.19)"
    )]
    Unsupported {
        /// What was to be registered.
        range: HvaRange,
        /// How.
        modes: Modes,
    },
    /// No memory, or no process: the kernel uses one number for both.
    #[error("registering {range}: no memory for it, or its process has gone")]
    NoMemoryOrDead {
        /// What was to be registered.
        range: HvaRange,
    },
    /// Anything else.
    #[error("registering {range}, or giving it back")]
    Other {
        /// What was to be registered.
        range: HvaRange,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

/// Why a descriptor from elsewhere cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// It is something else, or had no handshake yet.
    #[error("descriptor {0} is not a userfaultfd after its handshake")]
    NotUserfault(i32),
    /// It could not be asked.
    #[error("reading what descriptor {fd} is: mount procfs at /proc")]
    Unknown {
        /// Which.
        fd: i32,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

/// A userfaultfd after its handshake, non-blocking, closed when dropped: the kernel then wakes all who wait, and
/// what they waited for becomes an ordinary page.
///
/// All methods may be called by any number of threads at once.
#[derive(Debug)]
pub struct Userfault {
    fd: OwnedFd,
    features: Features,
}

impl Userfault {
    /// Opens one that serves a guest's faults, with these features on.
    ///
    /// # Errors
    /// The host does not let us, or the kernel lacks a feature: the error names which, and the remedy.
    pub fn open(features: Features) -> Result<Self, OpenError> {
        let fd = open::open()?;
        let features = open::handshake(fd.as_fd(), features)?;
        Ok(Self { fd, features })
    }

    /// Uses a descriptor that came from elsewhere: with [`super::Event::Fork`], or from another process. Its
    /// features are read from procfs. The addresses are those of the process it was made for.
    ///
    /// # Errors
    /// It is none.
    pub fn adopt(fd: OwnedFd) -> Result<Self, AdoptError> {
        let raw = fd.as_raw_fd();
        let unknown = |source| AdoptError::Unknown { fd: raw, source };
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{raw}")).map_err(unknown)?;
        let link = std::fs::read_link(format!("/proc/self/fd/{raw}")).map_err(unknown)?;
        let features = parse_fdinfo(&info).filter(|_| link.as_os_str() == "anon_inode:[userfaultfd]");
        let features = features.ok_or(AdoptError::NotUserfault(raw))?;
        let flags = rustix::fs::fcntl_getfl(&fd).map_err(|errno| unknown(errno.into()))?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(|errno| unknown(errno.into()))?;
        Ok(Self { fd, features })
    }

    /// The features that are on.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Has pages of a region watched. Whoever touches one of them that `modes` names waits until it is resolved,
    /// this thread too. A range that was registered before gets the new modes, which replace the old.
    ///
    /// # Errors
    /// The range does not fit, is taken, or cannot be watched so.
    pub fn register(
        &self,
        region: &Region,
        range: HvaRange,
        modes: Modes,
    ) -> Result<RegisteredIoctls, RegisterError> {
        region.check(range)?;
        // SAFETY: a region's memory, into which no reference ever exists; when it is unmapped, so is the
        // registration.
        unsafe { self.register_mapping(range, modes) }
    }

    /// The same for any mapping, which with an adopted descriptor is one of another process.
    ///
    /// # Safety
    /// As long as the range is registered and lies in this process, nobody makes a Rust reference into it.
    ///
    /// # Errors
    /// The range is taken or cannot be watched so.
    pub unsafe fn register_mapping(
        &self,
        range: HvaRange,
        modes: Modes,
    ) -> Result<RegisteredIoctls, RegisterError> {
        let mut argument = UffdioRegister { range: plain(range), mode: modes.bits(), ioctls: 0 };
        // SAFETY: the caller's contract.
        let done = unsafe { sys::register(self.fd.as_fd(), &mut argument) };
        done.map(|()| RegisteredIoctls(argument.ioctls)).map_err(|errno| match errno {
            Errno::BUSY => RegisterError::Taken { range },
            Errno::PERM => RegisterError::ReadOnly { range },
            Errno::INVAL => RegisterError::Unsupported { range, modes },
            Errno::NOMEM => RegisterError::NoMemoryOrDead { range },
            source => RegisterError::Other { range, source },
        })
    }

    /// Gives a range back. Who waits for a missing page in it is woken; who waits for a minor or write-protect
    /// fault alone is not (see `userfaultfd_unregister`): wake the range afterwards. Write protection goes.
    ///
    /// # Errors
    /// No mapping is there.
    pub fn unregister(&self, range: HvaRange) -> Result<(), RegisterError> {
        sys::unregister(self.fd.as_fd(), &mut plain(range)).map_err(|errno| match errno {
            Errno::NOMEM => RegisterError::NoMemoryOrDead { range },
            source => RegisterError::Other { range, source },
        })
    }

    /// Fills the missing pages at `dst` with copies of `src`, which is as long as they are.
    ///
    /// # Errors
    /// Not all was copied: see [`ResolveError::done`].
    pub fn copy(&self, dst: Hva, src: &[u8], map_as: MapAs, wake: Wake) -> Result<(), ResolveError> {
        let range = destination(dst, src.len() as u64);
        let (len, mode) = (src.len() as u64, map_as_bits(map_as) | wake_bits(wake));
        let mut argument = UffdioCopy { dst: dst.get(), src: src.as_ptr() as u64, len, mode, done: 0 };
        let returned = sys::copy(self.fd.as_fd(), &mut argument);
        outcome(Action::Copy, range, returned, argument.done)
    }

    /// Fills missing pages with zeroes: with the zero page, which costs no memory, where the memory is anonymous.
    ///
    /// # Errors
    /// Not all was filled. [`super::ResolveKind::Exists`] also stands for a missing page that is write-protected,
    /// for which only a copy will do.
    pub fn zero(&self, range: HvaRange, wake: Wake) -> Result<(), ResolveError> {
        self.fill(Action::Zero, range, wake_bits(wake))
    }

    /// Maps the pages that are in the page cache.
    ///
    /// # Errors
    /// Not all were mapped: [`super::ResolveKind::Fault`] is a page the cache does not have.
    pub fn continue_(&self, range: HvaRange, map_as: MapAs, wake: Wake) -> Result<(), ResolveError> {
        self.fill(Action::Continue, range, map_as_bits(map_as) | wake_bits(wake))
    }

    /// Makes missing pages fail whoever touches them, with SIGBUS (a guest: KVM_RUN returns EHWPOISON).
    ///
    /// # Errors
    /// Not all were poisoned.
    pub fn poison(&self, range: HvaRange, wake: Wake) -> Result<(), ResolveError> {
        self.fill(Action::Poison, range, wake_bits(wake))
    }

    fn fill(&self, action: Action, range: HvaRange, mode: u64) -> Result<(), ResolveError> {
        let request = match action {
            Action::Continue => abi::UFFDIO_CONTINUE,
            Action::Poison => abi::UFFDIO_POISON,
            _ => abi::UFFDIO_ZEROPAGE,
        };
        let mut argument = UffdioFill { range: plain(range), mode, done: 0 };
        let returned = sys::fill(self.fd.as_fd(), request, &mut argument);
        outcome(action, range, returned, argument.done)
    }

    /// Fills the missing pages at `dst` with the pages of `src` themselves, which is empty afterwards. Both are
    /// private anonymous memory of this process, in one mapping each. A PMD-mapped 2 MiB page stays one if both
    /// places are aligned and at least 2 MiB are moved; otherwise it is split. Needs [`Features::MOVE`] on the
    /// host, though not in [`Userfault::features`].
    ///
    /// The secondary MMUs are told of the source range, and the kernel starts over by itself as long as it meets
    /// pages in motion.
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
        self.move_with(dst, region, src, wake_bits(wake))
    }

    /// [`Userfault::move_pages`] that passes over what is not there: a hole at the source leaves the page at the
    /// destination missing, and counts as done.
    ///
    /// # Errors
    /// Not all was moved, or `src` does not fit its region.
    pub fn move_present(
        &self,
        dst: Hva,
        region: &Region,
        src: HvaRange,
        wake: Wake,
    ) -> Result<(), ResolveError> {
        self.move_with(dst, region, src, wake_bits(wake) | abi::UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES)
    }

    fn move_with(&self, dst: Hva, region: &Region, src: HvaRange, mode: u64) -> Result<(), ResolveError> {
        let range = destination(dst, src.len());
        if region.check(src).is_err() {
            return outcome(Action::Move, range, Err(Errno::INVAL), 0);
        }
        let mut argument =
            UffdioCopy { dst: dst.get(), src: src.start().get(), len: src.len(), mode, done: 0 };
        // SAFETY: pages of a region, into which no reference ever exists.
        let returned = unsafe { sys::move_pages(self.fd.as_fd(), &mut argument) };
        outcome(Action::Move, range, returned, argument.done)
    }

    /// Makes the next write to each page a fault. It wakes nobody.
    ///
    /// # Errors
    /// Some of it is not registered for that, or a mapping changes. A part may have been done; it may be
    /// repeated.
    pub fn write_protect(&self, range: HvaRange) -> Result<(), ResolveError> {
        self.change_protection(Action::WriteProtect, range, abi::UFFDIO_WRITEPROTECT_MODE_WP)
    }

    /// Lets pages be written again.
    ///
    /// # Errors
    /// As for [`Userfault::write_protect`].
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

    /// Wakes who waits for a page of the range, whatever its state: they look again.
    ///
    /// # Errors
    /// An empty or unaligned range.
    pub fn wake(&self, range: HvaRange) -> Result<(), ResolveError> {
        outcome(Action::Wake, range, sys::wake(self.fd.as_fd(), &mut plain(range)), 0)
    }

    /// Reads what messages there are behind what `buffer` still holds, without waiting, and gives how many it
    /// holds then. Faults come before events, whatever came first; each kind is in order.
    ///
    /// A message that is read is nobody else's: its fault waits for this reader, and its event goes on.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read_events(&self, buffer: &mut EventBuffer) -> Result<usize, ReadError> {
        buffer.fill(self.fd.as_fd())
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn plain(range: HvaRange) -> UffdioRange {
    UffdioRange { start: range.start().get(), len: range.len() }
}

/// What an error names. The kernel refuses what wraps, and the name is then empty.
pub(super) fn destination(dst: Hva, len: u64) -> HvaRange {
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

/// The features in `API: aa:<features>:<ioctls>`. Bit 31 is the kernel's own mark that the handshake was done.
fn parse_fdinfo(info: &str) -> Option<Features> {
    const INITIALIZED: u64 = 1 << 31;
    let line = info.lines().find_map(|line| line.strip_prefix("API:"))?;
    let (api, rest) = line.trim().split_once(':')?;
    let (features, _) = rest.split_once(':')?;
    let features = u64::from_str_radix(features, 16).ok()?;
    (api == "aa" && features & INITIALIZED != 0).then(|| Features::from_bits(features & !INITIALIZED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read_from_fdinfo() {
        let info = "pos:\t0\nflags:\t02004000\npending:\t1\ntotal:\t1\nAPI:\taa:80000008:80000000000001ff\n";
        assert_eq!(parse_fdinfo(info), Some(Features::EVENT_REMOVE));
        // Before its handshake, and another protocol.
        assert_eq!(parse_fdinfo("API:\taa:0:1ff\n"), None);
        assert_eq!(parse_fdinfo("API:\tab:80000008:1ff\n"), None);
        assert_eq!(parse_fdinfo("pos:\t0\n"), None);
    }

    #[test]
    fn another_descriptor_is_not_adopted() {
        let file = std::fs::File::open("/proc/self/status").unwrap();
        assert!(matches!(Userfault::adopt(file.into()), Err(AdoptError::NotUserfault(_))));
    }

    #[test]
    fn what_is_offered_is_read_by_number() {
        // What 6.12 says of anonymous memory registered for missing pages.
        let offered = RegisteredIoctls(0x13c);
        assert!(
            offered.offers(Action::Copy) && offered.offers(Action::Move) && offered.offers(Action::Poison)
        );
        assert!(!offered.offers(Action::WriteProtect) && !offered.offers(Action::Continue));
    }
}
