//! Why a trial did not come to its end.

use guest_mem::{CgroupError, ReclaimError, RegionError, ScanError, SeamError};
use notifier_bridge::ResolveError;

use super::own_swap::OwnSwapError;
use guest::GuestError;
use program::exit::{Class, Classified};

/// Why a trial did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The guest crashed, stayed silent, or broke the protocol.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// Page state could not be read.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// Memory could not be taken.
    #[error(transparent)]
    Reclaim(#[from] ReclaimError),
    /// khugepaged could not be kept out.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// The memory could not be prepared for exact toggles.
    #[error(transparent)]
    Seam(#[from] SeamError),
    /// The cgroup could not be squeezed.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Swap in user space failed.
    #[error(transparent)]
    OwnSwap(#[from] OwnSwapError),
    /// The device beside the guest could not reach a page.
    #[error("the device of `shared_tlb`")]
    Device(#[from] ResolveError),
    /// The user wants to stop.
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
