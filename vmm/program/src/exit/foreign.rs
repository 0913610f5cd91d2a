//! The classes of the errors of other crates, which do not know exit codes.

use guest_mem::waits::Overdue;
use guest_mem::{
    CgroupError, ContentError, RangeError, ReclaimError, RegionError, ScanError, SeamError, SlotError,
    ZramError,
};
use swap::{
    AttachError, BufferError, EvictError, FileStoreError, HandOverError, HandlerError, StoreError, WatchError,
};
use uffd::{OpenError, RegisterError, ResolveError, ResolveKind};

use super::{Class, Classified};

/// Gives each error a class, variant by variant.
macro_rules! classes {
    ($($error:ident { $($variant:pat => $class:expr,)+ })+) => {
        $(impl Classified for $error {
            fn class(&self) -> Class {
                match self { $($variant => $class,)+ }
            }
        })+
    };
}

classes! {
    ZramError {
        Self::Size(_) => Class::Mistake,
        Self::NoNode(_) | Self::Table { .. } => Class::Host,
        Self::File { source, .. } => Class::of_refused_io(source),
        Self::SwapOn { source, .. } => Class::of_refusal(*source),
    }
    RangeError {
        // Ranges are computed from checked values.
        _ => Class::Fault,
    }
    RegionError {
        Self::Length { .. } => Class::Mistake,
        // EINVAL is the answer of a kernel that does not know the backing, too.
        Self::Reserve { .. } | Self::Hugetlb { .. } | Self::NotGiven { .. } | Self::Setup { .. } => Class::Host,
        Self::Guard { source, .. } => source.class(),
        Self::Populate { source, .. } => Class::of_refusal(*source),
        Self::Range(error) => error.class(),
    }
    SlotError {
        Self::Granule(_) => Class::Mistake,
        Self::TooMany { .. } => Class::Host,
        Self::Unaligned { .. } | Self::Wraps { .. } | Self::Overlap(..) => Class::Fault,
    }
    SeamError {
        Self::TooManyVmas { .. } => Class::Host,
        Self::Hugetlb | Self::Range(_) => Class::Fault,
        Self::Call { source, .. } => Class::of_refusal(*source),
    }
    ScanError {
        Self::Open(_) | Self::NoPagemapScan(_) => Class::Host,
        Self::Unaligned(_) | Self::Range(_) => Class::Fault,
        Self::Call { source, .. } => Class::of_refusal(*source),
        Self::Read { source, .. } => Class::of_refused_io(source),
    }
    ContentError {
        Self::Region(error) => error.class(),
        Self::Read { source, .. } => Class::of_refusal(*source),
    }
    ReclaimError {
        Self::Refused { .. } | Self::Stranded { .. } | Self::Range(_) => Class::Fault,
        // EINVAL is the answer of a kernel that does not know the advice, too.
        Self::Call { .. } => Class::Host,
        Self::Overdue(overdue) => overdue.class(),
    }
    CgroupError {
        Self::NoController | Self::NotDelegated(_) => Class::Host,
        Self::Name(_) => Class::Fault,
        Self::File { source, .. } => Class::of_refused_io(source),
    }
    BufferError {
        Self { source, .. } => Class::of_refusal(*source),
    }
    StoreError {
        // The scenario sets the limit.
        Self::Full { .. } => Class::Mistake,
        Self::Memory { .. } => Class::Host,
        // A snapshot that was cut after it was opened.
        Self::Damaged { .. } | Self::NoSuchPage { .. } => Class::Wrong,
        Self::Shape { .. } | Self::Io { .. } | Self::Short { .. } | Self::ReadOnly { .. } => Class::Fault,
    }
    FileStoreError {
        Self { source, .. } => Class::of_refusal(*source),
    }
    OpenError {
        Self::NoKernelSupport | Self::UserModeOnly { .. } | Self::Filtered { .. } => Class::Host,
        Self::Exhausted(_) | Self::Lacks { .. } => Class::Host,
        Self::Handshake { source, .. } => Class::of_refusal(*source),
    }
    RegisterError {
        Self::Range(error) => error.class(),
        Self::Taken { .. } | Self::ReadOnly { .. } => Class::Fault,
        Self::Unsupported { .. } | Self::NoMemoryOrDead { .. } => Class::Host,
        Self::Other { source, .. } => Class::of_refusal(*source),
    }
    ResolveError {
        Self { kind: ResolveKind::NoMemory, .. } => Class::Host,
        _ => Class::Fault,
    }
    AttachError {
        Self::Open(error) => error.class(),
        Self::Register(error) => error.class(),
        Self::Scan(error) => error.class(),
        Self::Buffer(error) => error.class(),
        Self::Backing(_) => Class::Mistake,
    }
    HandOverError {
        _ => Class::Fault,
    }
    HandlerError {
        Self::Wait(source) => Class::of_refusal(*source),
        Self::Buffer(error) => error.class(),
        Self::Thread(source) => Class::of_refused_io(source),
        Self::Read(_) | Self::Decode(_) => Class::Fault,
        Self::Overdue(overdue) => overdue.class(),
    }
    WatchError {
        Self::Range(error) => error.class(),
        Self::Protect(error) => error.class(),
        Self::Unmap(error) => error.class(),
        Self::Overdue(overdue) => overdue.class(),
    }
    EvictError {
        Self::Range(error) => error.class(),
        Self::Blocks(_) => Class::Fault,
        Self::Protect { source, .. } => source.class(),
        Self::Copy { source, .. } => Class::of_refusal(*source),
        Self::Store { source, .. } => source.class(),
        Self::Drop { source, .. } => source.class(),
        Self::Overdue(overdue) => overdue.class(),
    }
    Overdue {
        // A thread or a wake-up of this program.
        _ => Class::Fault,
    }
}
