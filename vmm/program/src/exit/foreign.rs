//! The classes of the errors of other crates, which do not know exit codes.

use guest_mem::waits::Overdue;
use guest_mem::{
    CgroupError, ContentError, RangeError, ReclaimError, RegionError, ScanError, SeamError, SlotError,
    ZramError,
};
use swap::{
    AttachError, BufferError, EvictError, FileStoreError, HandOverError, HandlerError, StoreError, WatchError,
};
use uffd::{OpenError, ReadError, RegisterError, ResolveError};

use super::{Class, Classified};

impl Classified for ZramError {
    fn class(&self) -> Class {
        match self {
            Self::Size(_) => Class::Mistake,
            Self::NoNode(_) | Self::Table { .. } => Class::Host,
            Self::File { source, .. } => Class::of_refused_io(source),
            Self::SwapOn { source, .. } => Class::of_refusal(*source),
        }
    }
}

/// Ranges are computed from checked values.
impl Classified for RangeError {
    fn class(&self) -> Class {
        Class::Fault
    }
}

impl Classified for RegionError {
    fn class(&self) -> Class {
        match self {
            Self::Length { .. } => Class::Mistake,
            // EINVAL is the answer of a kernel that does not know the backing, too.
            Self::Reserve { .. } | Self::Hugetlb { .. } | Self::NotGiven { .. } | Self::Setup { .. } => {
                Class::Host
            }
            Self::Guard { source, .. } => source.class(),
            Self::Populate { source, .. } => Class::of_refusal(*source),
            Self::Range(error) => error.class(),
        }
    }
}

impl Classified for SlotError {
    fn class(&self) -> Class {
        match self {
            Self::Granule(_) => Class::Mistake,
            Self::TooMany { .. } => Class::Host,
            Self::Unaligned { .. } | Self::Wraps { .. } | Self::Overlap(..) => Class::Fault,
        }
    }
}

impl Classified for SeamError {
    fn class(&self) -> Class {
        match self {
            Self::TooManyVmas { .. } => Class::Host,
            Self::Hugetlb | Self::Range(_) => Class::Fault,
            Self::Call { source, .. } => Class::of_refusal(*source),
        }
    }
}

impl Classified for ScanError {
    fn class(&self) -> Class {
        match self {
            Self::Open(_) | Self::NoPagemapScan(_) => Class::Host,
            Self::Unaligned(_) | Self::Range(_) => Class::Fault,
            Self::Call { source, .. } => Class::of_refusal(*source),
            Self::Read { source, .. } => Class::of_refused_io(source),
        }
    }
}

impl Classified for ContentError {
    fn class(&self) -> Class {
        match self {
            Self::Region(error) => error.class(),
            Self::Read { source, .. } => Class::of_refusal(*source),
        }
    }
}

impl Classified for ReclaimError {
    fn class(&self) -> Class {
        match self {
            Self::Refused { .. } | Self::Stranded { .. } | Self::Range(_) => Class::Fault,
            // EINVAL is the answer of a kernel that does not know the advice, too.
            Self::Call { .. } => Class::Host,
            Self::Overdue(overdue) => overdue.class(),
        }
    }
}

impl Classified for CgroupError {
    fn class(&self) -> Class {
        match self {
            Self::NoController | Self::NotDelegated(_) => Class::Host,
            Self::Name(_) => Class::Fault,
            Self::File { source, .. } => Class::of_refused_io(source),
        }
    }
}

impl Classified for BufferError {
    fn class(&self) -> Class {
        Class::of_refusal(self.source)
    }
}

impl Classified for StoreError {
    fn class(&self) -> Class {
        match self {
            // The scenario sets the limit.
            Self::Full { .. } => Class::Mistake,
            Self::Memory { .. } => Class::Host,
            // A snapshot that was cut after it was opened.
            Self::Damaged { .. } | Self::NoSuchPage { .. } => Class::Wrong,
            Self::Shape { .. } | Self::Io { .. } | Self::Short { .. } | Self::ReadOnly { .. } => Class::Fault,
        }
    }
}

impl Classified for FileStoreError {
    fn class(&self) -> Class {
        Class::of_refusal(self.source)
    }
}

impl Classified for OpenError {
    fn class(&self) -> Class {
        match self {
            Self::NoKernelSupport
            | Self::UserModeOnly { .. }
            | Self::Filtered { .. }
            | Self::Exhausted(_)
            | Self::Lacks { .. } => Class::Host,
            Self::Handshake { source, .. } => Class::of_refusal(*source),
        }
    }
}

impl Classified for RegisterError {
    fn class(&self) -> Class {
        match self {
            Self::Range(error) => error.class(),
            Self::Taken { .. } | Self::ReadOnly { .. } => Class::Fault,
            Self::Unsupported { .. } | Self::NoMemoryOrDead { .. } => Class::Host,
            Self::Other { source, .. } => Class::of_refusal(*source),
        }
    }
}

impl Classified for ReadError {
    fn class(&self) -> Class {
        Class::Fault
    }
}

impl Classified for ResolveError {
    fn class(&self) -> Class {
        match self.kind {
            uffd::ResolveKind::NoMemory => Class::Host,
            _ => Class::Fault,
        }
    }
}

impl Classified for AttachError {
    fn class(&self) -> Class {
        match self {
            Self::Open(error) => error.class(),
            Self::Register(error) => error.class(),
            Self::Scan(error) => error.class(),
            Self::Buffer(error) => error.class(),
            Self::Backing(_) => Class::Mistake,
        }
    }
}

impl Classified for HandOverError {
    fn class(&self) -> Class {
        Class::Fault
    }
}

impl Classified for HandlerError {
    fn class(&self) -> Class {
        match self {
            Self::Wait(source) => Class::of_refusal(*source),
            Self::Buffer(error) => error.class(),
            Self::Thread(source) => Class::of_refused_io(source),
            Self::Read(error) => error.class(),
            Self::Decode(_) => Class::Fault,
            Self::Overdue(overdue) => overdue.class(),
        }
    }
}

impl Classified for WatchError {
    fn class(&self) -> Class {
        match self {
            Self::Range(error) => error.class(),
            Self::Protect(error) => error.class(),
            Self::Unmap(error) => error.class(),
            Self::Overdue(overdue) => overdue.class(),
        }
    }
}

impl Classified for EvictError {
    fn class(&self) -> Class {
        match self {
            Self::Range(error) => error.class(),
            Self::Blocks(_) => Class::Fault,
            Self::Protect { source, .. } => source.class(),
            Self::Copy { source, .. } => Class::of_refusal(*source),
            Self::Store { source, .. } => source.class(),
            Self::Drop { source, .. } => source.class(),
            Self::Overdue(overdue) => overdue.class(),
        }
    }
}

/// A thread or a wake-up of this program.
impl Classified for Overdue {
    fn class(&self) -> Class {
        Class::Fault
    }
}
