//! Memory whose content is in the store from the start: the guest of a snapshot.
//!
//! ```text
//!   Region, empty ── Swapper::attach ── hand_over ── Handlers::start ── the guest runs, and each page comes at its first fault
//! ```

use crate::state::{BLOCK_PAGES, SwapState};
use crate::store::Slot;
use crate::swapper::Swapper;

/// The place of a page's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// In the store.
    Stored {
        /// Its slot in the store.
        slot: Slot,
        /// The [`crate::checksum()`] of the content and the page's number from the start of the region.
        checksum: u32,
    },
    /// Nowhere: all of it is zero.
    Zero,
}

/// Memory cannot be handed over: it is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("page {page} of the memory has been used already: memory is handed over before anybody touches it")]
pub struct HandOverError {
    /// The first such page.
    pub page: u64,
}

impl Swapper {
    /// Sets the place of each page's content, by its number from the start of the region. To be called after
    /// [`Swapper::attach`] and before handlers are started: threads that touch a page meanwhile wait.
    ///
    /// # Errors
    /// A page is in memory, or has been; those before it are handed over.
    pub fn hand_over(&self, mut content: impl FnMut(u64) -> Kept) -> Result<(), HandOverError> {
        for (number, _) in self.region().range().block_pieces().enumerate() {
            let first = self.first_page(number);
            let mut block = self.blocks.lock(number);
            for index in 0..BLOCK_PAGES {
                let page = first + index as u64;
                if block.state(index) != SwapState::Absent {
                    return Err(HandOverError { page });
                }
                match content(page) {
                    Kept::Stored { slot, checksum } => {
                        block.set_checksum(index, checksum);
                        block.set(index, SwapState::Stored(slot));
                    }
                    Kept::Zero => block.set(index, SwapState::Zero),
                }
            }
        }
        Ok(())
    }
}
