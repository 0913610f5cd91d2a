//! The error of an eviction.

use guest_mem::remedy::{self, Asked};
use guest_mem::waits::Overdue;
use guest_mem::{HvaRange, RangeError, ReclaimError};
use rustix::io::Errno;
use uffd::ResolveError;

use crate::store::StoreError;

/// Pages could not be evicted. They stay resident and can be written to; after an [`EvictError::Drop`] some may be out, and
/// come back like any other.
#[derive(Debug, thiserror::Error)]
pub enum EvictError {
    /// The range does not fit the region.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The range reaches over a 2 MiB boundary.
    #[error("{0} is in more than one 2 MiB block: evict it block by block")]
    Blocks(HvaRange),
    /// The kernel refused to change the write protection.
    #[error("evicting {range}")]
    Protect {
        /// The pages that were to leave.
        range: HvaRange,
        /// The cause.
        #[source]
        source: ResolveError,
    },
    /// The pages could not be read.
    #[error("copying {range} out{}", remedy::after(Asked::Content, *source))]
    Copy {
        /// The pages that were to leave.
        range: HvaRange,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// The store did not take them.
    #[error("storing pages of {range}: they stay")]
    Store {
        /// The pages that were to leave.
        range: HvaRange,
        /// The cause.
        #[source]
        source: StoreError,
    },
    /// The kernel did not drop them.
    #[error(
        "dropping pages of {range}: those that are still there stay. Is a part of it locked, or unmapped?"
    )]
    Drop {
        /// The pages that were to leave.
        range: HvaRange,
        /// The cause.
        #[source]
        source: ReclaimError,
    },
    /// A handler does not read an event, or does not act on it.
    #[error(transparent)]
    Overdue(#[from] Overdue),
}
