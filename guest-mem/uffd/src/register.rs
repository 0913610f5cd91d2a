//! Registering memory.

use std::os::fd::AsFd;

use guest_mem::{HvaRange, RangeError, Region};
use rustix::io::Errno;

use crate::abi::{self, UffdioRegister};
use crate::handle::{Userfault, plain};
use crate::sys;

/// The kinds of faults that are reported for a registered range. At least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Modes {
    /// Accesses to missing pages.
    pub missing: bool,
    /// Accesses to pages of shared memory that are in the page cache and not mapped.
    pub minor: bool,
    /// Writes to pages that are write-protected.
    pub write_protect: bool,
}

impl Modes {
    fn bits(self) -> u64 {
        let bit = |on, bit: u32| if on { u64::from(bit) } else { 0 };
        bit(self.missing, abi::UFFDIO_REGISTER_MODE_MISSING)
            | bit(self.minor, abi::UFFDIO_REGISTER_MODE_MINOR)
            | bit(self.write_protect, abi::UFFDIO_REGISTER_MODE_WP)
    }
}

/// A range could not be registered or unregistered.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum RegisterError {
    #[error(transparent)]
    Range(#[from] RangeError),
    #[error("registering {range}: part of it belongs to another userfaultfd")]
    Taken { range: HvaRange },
    #[error("registering {range}: part of it may not be written")]
    ReadOnly { range: HvaRange },
    #[error(
        "registering {range} with {modes:?}: no mapping, no mode, or memory that this kernel cannot watch so \
         (minor faults take shared memory; write protection of that takes Linux 5.19)"
    )]
    Unsupported { range: HvaRange, modes: Modes },
    /// No memory, or no process: the kernel uses one number for both.
    #[error(
        "registering {range}: too many mappings, which it splits (raise `sysctl vm.max_map_count`), no memory for it, \
         or its process has gone"
    )]
    NoMemoryOrDead { range: HvaRange },
    #[error("registering {range}, or giving it back")]
    Other { range: HvaRange, source: Errno },
}

impl Userfault {
    /// Registers pages of a region. A thread whose access faults in one of `modes` waits until the fault is resolved, this
    /// thread too. A range that was registered before gets the new modes, which replace the old.
    ///
    /// # Errors
    /// The range does not fit, is taken, or cannot be watched so.
    pub fn register(&self, region: &Region, range: HvaRange, modes: Modes) -> Result<(), RegisterError> {
        region.check(range)?;
        let mut argument = UffdioRegister { range: plain(range), mode: modes.bits(), ioctls: 0 };
        // SAFETY: a region's memory, into which no reference ever exists; when it is unmapped, so is the
        // registration.
        unsafe { sys::register(self.fd.as_fd(), &mut argument) }.map_err(|errno| match errno {
            Errno::BUSY => RegisterError::Taken { range },
            Errno::PERM => RegisterError::ReadOnly { range },
            Errno::INVAL => RegisterError::Unsupported { range, modes },
            Errno::NOMEM => RegisterError::NoMemoryOrDead { range },
            source => RegisterError::Other { range, source },
        })
    }

    /// Unregisters a range. Threads that wait for a missing page in it are woken; threads that wait for a minor or
    /// write-protect fault are not (see `userfaultfd_unregister`): wake the range afterwards. Write protection is removed.
    ///
    /// # Errors
    /// No mapping is there.
    pub fn unregister(&self, range: HvaRange) -> Result<(), RegisterError> {
        sys::unregister(self.fd.as_fd(), &mut plain(range)).map_err(|errno| match errno {
            Errno::NOMEM => RegisterError::NoMemoryOrDead { range },
            source => RegisterError::Other { range, source },
        })
    }
}
