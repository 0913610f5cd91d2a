//! The errors that end a trial.

use guest_mem::{CgroupError, ReclaimError, RegionError, ScanError, SeamError};
use notifier_bridge::ResolveError;
use swap::{AttachError, BufferError, EvictError, FileStoreError, HandlerError, StoreError, WatchError};

use guest::GuestError;
use host::Cancelled;
use program::exit::{Class, Classified};

/// An error that ends a trial.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum TrialError {
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error(transparent)]
    Reclaim(#[from] ReclaimError),
    #[error(transparent)]
    Region(#[from] RegionError),
    #[error(transparent)]
    Seam(#[from] SeamError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Handlers(#[from] HandlerError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    File(#[from] FileStoreError),
    #[error(transparent)]
    Buffer(#[from] BufferError),
    #[error(transparent)]
    Watch(#[from] WatchError),
    #[error(transparent)]
    Evict(#[from] EvictError),
    #[error("the device of `shared_tlb`")]
    Device(#[from] ResolveError),
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl Classified for TrialError {
    fn class(&self) -> Class {
        match self {
            Self::Guest(error) => error.class(),
            Self::Scan(error) => error.class(),
            Self::Reclaim(error) => error.class(),
            Self::Region(error) => error.class(),
            Self::Seam(error) => error.class(),
            Self::Cgroup(error) => error.class(),
            Self::Attach(error) => error.class(),
            Self::Handlers(error) => error.class(),
            Self::Store(error) => error.class(),
            Self::File(error) => error.class(),
            Self::Buffer(error) => error.class(),
            Self::Watch(error) => error.class(),
            Self::Evict(error) => error.class(),
            Self::Device(ResolveError::Overdue(overdue)) => overdue.class(),
            // Of a page of the arena: what is mapped there is not there.
            Self::Device(_) => Class::Host,
            Self::Cancelled(_) => Class::Interrupted,
        }
    }
}
