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
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum EvictError {
    #[error(transparent)]
    Range(#[from] RangeError),
    #[error("{0} is in more than one 2 MiB block: evict it block by block")]
    Blocks(HvaRange),
    #[error("evicting {range}")]
    Protect { range: HvaRange, source: ResolveError },
    #[error("copying {range} out{}", remedy::after(Asked::Content, *source))]
    Copy { range: HvaRange, source: Errno },
    #[error("storing pages of {range}: they stay")]
    Store { range: HvaRange, source: StoreError },
    #[error(
        "dropping pages of {range}: those that are still there stay. Is a part of it locked, or unmapped?"
    )]
    Drop { range: HvaRange, source: ReclaimError },
    /// A handler does not read an event, or does not act on it.
    #[error(transparent)]
    Overdue(#[from] Overdue),
}
