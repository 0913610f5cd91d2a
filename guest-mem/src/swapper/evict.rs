//! Pages on their way out.
//!
//! ```text
//!   Evictor::claim(range) ── Resident -> Leaving, write-protected
//!     └─ Claimed::store() ── copied out, checksum, zero or Store::put        the guest reads on; a write ends it for that page
//!          └─ Stored::commit() ── Leaving -> Stored | Zero, dropped           those that were written to stay
//! ```
//!
//! Three steps and not one, because two of them take translations from secondary MMUs (write protection, and the drop):
//! whoever announces invalidations puts a bracket around each. A step that is not followed by the next undoes itself.

use rustix::io::Errno;

use super::Swapper;
use super::fate::{BLOCK_PAGES, Block, Fate};
use super::runs::runs;
use crate::address::{PAGE_SIZE, PMD_SIZE};
use crate::range::HvaRange;
use crate::reclaim::{Operation, ReclaimError, perform_unmeasured};
use crate::region::RangeError;
use crate::store::{PageBuffer, Slot, StoreError, checksum, is_zero_page};
use crate::sys;
use crate::uffd::{Changing, Wake};

/// Why pages could not be evicted. They are all where they were.
#[derive(Debug, thiserror::Error)]
pub enum EvictError {
    /// The range does not fit the region.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The range reaches over a 2 MiB boundary.
    #[error("{0} is in more than one 2 MiB block: evict block by block")]
    Blocks(HvaRange),
    /// The kernel refused the write protection.
    #[error("write-protecting {range}")]
    Protect {
        /// Of what.
        range: HvaRange,
        /// Why.
        #[source]
        source: Errno,
    },
    /// The pages could not be read.
    #[error("copying {range} out")]
    Copy {
        /// Of what.
        range: HvaRange,
        /// Why.
        #[source]
        source: Errno,
    },
    /// The store did not take them.
    #[error("storing pages of {range}: they stay")]
    Store {
        /// Of what.
        range: HvaRange,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The kernel did not drop them.
    #[error("dropping {0}: they stay", .range)]
    Drop {
        /// Of what.
        range: HvaRange,
        /// Why.
        #[source]
        source: ReclaimError,
    },
}

/// What became of the pages of one eviction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// Pages that left, those of zeros among them.
    pub pages: u64,
    /// Pages of zeros: nothing of them is in the store.
    pub zeros: u64,
    /// Pages that stayed because they were written to, or discarded, on the way.
    pub stayed: u64,
}

impl std::ops::AddAssign for Evicted {
    fn add_assign(&mut self, other: Self) {
        self.pages += other.pages;
        self.zeros += other.zeros;
        self.stayed += other.stayed;
    }
}
