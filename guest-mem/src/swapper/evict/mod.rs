//! Pages on their way out.
//!
//! ```text
//!   Evictor::claim(range) ─── Resident -> Leaving, write-protected                                        claimed.rs
//!     └─ Claimed::store() ─── copied out, checksum, zero or Store::put     the guest reads on; a write keeps its page
//!          └─ Packed::drop_pages() ── Leaving -> Stored | Zero, dropped    those that were written to stay  packed.rs
//! ```
//!
//! Three steps and not one, because two of them take translations from secondary MMUs (write protection, and the drop):
//! whoever announces invalidations puts a bracket around each. A step that is not followed by the next undoes itself.
//!
//! All that is kept of a claim is as long as the claim: a single page costs what a single page takes.

mod claimed;
mod error;
mod kernel;
mod packed;

pub use claimed::Claimed;
pub use error::EvictError;
pub use packed::Packed;

use super::fate::BLOCK_PAGES;
use super::{Swapper, blocks_of};
use crate::range::HvaRange;
use crate::store::{BufferError, PageBuffer, Slot};

/// What became of the pages of an eviction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// Pages that left, those of zeros among them.
    pub pages: u64,
    /// Pages of zeros: nothing of them is in the store.
    pub zeros: u64,
    /// Pages that stayed, because they were written to or discarded on the way.
    pub stayed: u64,
}

impl std::ops::AddAssign for Evicted {
    fn add_assign(&mut self, other: Self) {
        self.pages += other.pages;
        self.zeros += other.zeros;
        self.stayed += other.stayed;
    }
}

/// What a claim has of one of its pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Share {
    /// Nothing: it was not resident, or is somebody else's by now.
    #[default]
    None,
    /// The page, write-protected.
    Claimed,
    /// The page, and that it is zero.
    Zero,
    /// The page, and its content in the store, with this checksum.
    Stored(Slot, u32),
}

impl Share {
    /// Whether it may leave.
    fn is_packed(self) -> bool {
        matches!(self, Self::Zero | Self::Stored(..))
    }
}

/// One thread's means to evict. Any number of threads evict from one [`Swapper`].
#[derive(Debug)]
pub struct Evictor<'s> {
    swapper: &'s Swapper,
    buffer: PageBuffer,
    slots: Vec<Slot>,
    /// By page of the claim at hand.
    shares: Vec<Share>,
}

impl<'s> Evictor<'s> {
    /// Means of one's own.
    ///
    /// # Errors
    /// There is no memory for its buffer of 2 MiB.
    pub fn new(swapper: &'s Swapper) -> Result<Self, BufferError> {
        Ok(Self {
            swapper,
            buffer: PageBuffer::new(BLOCK_PAGES)?,
            slots: Vec::with_capacity(BLOCK_PAGES),
            shares: Vec::with_capacity(BLOCK_PAGES),
        })
    }

    /// Evicts `range`, block by block, all three steps of each.
    ///
    /// # Errors
    /// [`EvictError`], with what was evicted before it.
    pub fn evict(&mut self, range: HvaRange) -> Result<Evicted, (Evicted, EvictError)> {
        let mut all = Evicted::default();
        for piece in blocks_of(range) {
            let one = self.claim(piece).and_then(Claimed::store).and_then(Packed::drop_pages);
            all += one.map_err(|error| (all, error))?;
        }
        Ok(all)
    }

    /// Claims the resident pages of `range`, which lies in one 2 MiB block, and write-protects them.
    ///
    /// # Errors
    /// The range does not fit, or the kernel refuses.
    pub fn claim(&mut self, range: HvaRange) -> Result<Claimed<'_, 's>, EvictError> {
        self.swapper.region().check(range)?;
        let (block, pages) = self.swapper.place(range).ok_or(EvictError::Blocks(range))?;
        Claimed::new(self, block, pages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_evicted_adds_up() {
        let mut all = Evicted { pages: 7, zeros: 5, stayed: 3 };
        all += Evicted { pages: 1, zeros: 10, stayed: 100 };
        assert_eq!(all, Evicted { pages: 8, zeros: 15, stayed: 103 });
    }
}
