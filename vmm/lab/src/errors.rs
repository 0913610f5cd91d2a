//! The errors that end a trial.

use guest_mem::{CgroupError, ReclaimError, RegionError, ScanError, SeamError};
use notifier_bridge::ResolveError;

use super::own_swap::OwnSwapError;
use guest::GuestError;
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
    OwnSwap(#[from] OwnSwapError),
    #[error("the device of `shared_tlb`")]
    Device(#[from] ResolveError),
    #[error("interrupted")]
    Cancelled,
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
            Self::OwnSwap(error) => error.class(),
            Self::Device(ResolveError::Overdue(overdue)) => overdue.class(),
            // Of a page of the arena: what is mapped there is not there.
            Self::Device(_) => Class::Host,
            Self::Cancelled => Class::Interrupted,
        }
    }
}
