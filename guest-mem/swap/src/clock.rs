//! A clock: finds pages that were not used for a while, to be evicted.
//!
//! ```text
//!   watch(range)   takes away from    shared memory   its mapping            a read or a write faults
//!        │                            private memory  the right to write     a write faults
//!        │ time passes; a fault, served ───────> that page was used; a page that came back was, too
//!        ▼
//!   next_idle()    the hand goes on: over units with a used page, to one that has something in memory and none
//! ```
//!
//! An idle scan by userfaultfd, because the accessed bits are only available from the kernel: `/sys/kernel/mm/page_idle` is
//! in few kernels, and for root. In private memory it does not see reads: a page that is only read is evicted once, comes
//! back at its next use, and is passed over until it is found unused again.

use guest_mem::waits::Overdue;
use guest_mem::{HvaRange, Operation, PAGE_SIZE, RangeError, ReclaimError};
use uffd::ResolveError;

use crate::state::{BLOCK_PAGES, SwapState};
use crate::swapper::Swapper;

/// A range could not be watched.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum WatchError {
    #[error(transparent)]
    Range(#[from] RangeError),
    #[error(transparent)]
    Protect(#[from] ResolveError),
    #[error(transparent)]
    Unmap(#[from] ReclaimError),
    /// A handler does not read an event, or does not act on it.
    #[error(transparent)]
    Overdue(#[from] Overdue),
}

/// A hand that goes round over a region, unit by unit. It evicts nothing itself.
#[derive(Debug)]
pub struct Clock<'s> {
    swapper: &'s Swapper,
    /// Pages of a unit.
    unit: u64,
    /// The unit that it looks at next.
    hand: u64,
}

impl<'s> Clock<'s> {
    /// A clock over units of so many pages: a power of two, at most those of a huge page.
    ///
    /// # Panics
    /// It is not.
    pub fn new(swapper: &'s Swapper, unit_pages: u64) -> Self {
        assert!(unit_pages.is_power_of_two() && unit_pages <= BLOCK_PAGES as u64, "{unit_pages} pages");
        Self { swapper, unit: unit_pages, hand: 0 }
    }

    /// Begins to watch the pages of a range, as if none had been used yet. Translations of it are dropped: announce that
    /// before. Pages stay watched until they are used or evicted.
    pub fn watch(&self, range: HvaRange) -> Result<(), WatchError> {
        let swapper = self.swapper;
        swapper.region().check(range)?;
        swapper.used.begin_to_watch();
        // Before access is taken away: a use in between is marked, and kept.
        for piece in range.block_pieces() {
            swapper.used.clear(swapper.numbers(piece));
        }
        match self.operation() {
            Operation::DontNeed => swapper.drop_mapping(range)?,
            _ => swapper.insist(|| swapper.userfault.write_protect(range))??,
        }
        Ok(())
    }

    /// The operation of [`Clock::watch`], as a listener of translations sees it.
    pub fn operation(&self) -> Operation {
        if self.swapper.region().backing().is_shared() { Operation::DontNeed } else { Operation::Protect }
    }

    /// The next unit, in at most one round, that has pages in memory of which none was used since it was watched.
    pub fn next_idle(&mut self) -> Option<HvaRange> {
        let units = self.swapper.region().range().page_count() / self.unit;
        for _ in 0..units {
            let first = self.hand * self.unit;
            self.hand = (self.hand + 1) % units;
            if !self.swapper.used.any(first..first + self.unit) && self.has_residents(first) {
                return self.swapper.region().slice(first * PAGE_SIZE, self.unit * PAGE_SIZE);
            }
        }
        None
    }

    fn has_residents(&self, first: u64) -> bool {
        let of_block = BLOCK_PAGES as u64;
        let block = self.swapper.blocks.lock((first / of_block) as usize);
        let first = (first % of_block) as usize;
        (first..first + self.unit as usize).any(|page| block.state(page) == SwapState::Resident)
    }
}
