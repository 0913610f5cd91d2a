//! What has become of each page, in blocks of 2 MiB.
//!
//! ```text
//!   Absent ──first touch──> Resident ──claimed──> Leaving ──stored, unwritten──> Stored | Zero ──fault──> Resident
//!      ▲                       ▲  ▲                  │                              │
//!      └──────discarded────────┘  └──written to──────┘                              └─ cannot be read back ─> Lost
//! ```
//!
//! A block's lock is held for as long as its pages change: by an evictor that claims them, by the same that drops them,
//! by whoever brings them back. Nobody waits for anything while holding it (`EAGAIN` of the kernel is waited out
//! unlocked), so it is held for one system call or a few.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::address::{PAGE_SIZE, PAGES_PER_PMD};
use crate::store::Slot;

/// What has become of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing was ever there, or it was discarded: it reads as zeros.
    Absent,
    /// In memory.
    Resident,
    /// In memory, write-protected, being copied out.
    Leaving,
    /// In the store.
    Stored(Slot),
    /// Evicted; all of it was zero, which is all there is to know.
    Zero,
    /// The store cannot give it back.
    Lost,
}

impl Fate {
    /// Whether a fault has to bring it back.
    pub const fn is_out(self) -> bool {
        matches!(self, Self::Stored(_) | Self::Zero)
    }
}

/// A fate in eight bytes: the kind in the top one, a slot in the rest.
#[derive(Clone, Copy, Default)]
struct Entry(u64);

const KIND_SHIFT: u32 = 56;
const SLOT_MASK: u64 = (1 << KIND_SHIFT) - 1;

impl From<Fate> for Entry {
    fn from(fate: Fate) -> Self {
        let (kind, slot) = match fate {
            Fate::Absent => (0, 0),
            Fate::Resident => (1, 0),
            Fate::Leaving => (2, 0),
            Fate::Stored(slot) => (3, slot.get() & SLOT_MASK),
            Fate::Zero => (4, 0),
            Fate::Lost => (5, 0),
        };
        Self(kind << KIND_SHIFT | slot)
    }
}

impl From<Entry> for Fate {
    fn from(entry: Entry) -> Self {
        match entry.0 >> KIND_SHIFT {
            0 => Self::Absent,
            1 => Self::Resident,
            2 => Self::Leaving,
            3 => Self::Stored(Slot::new(entry.0 & SLOT_MASK)),
            4 => Self::Zero,
            _ => Self::Lost,
        }
    }
}

/// Pages of a block.
pub(super) const BLOCK_PAGES: usize = PAGES_PER_PMD as usize;

/// The pages of one block.
#[derive(Default)]
pub(super) struct Block {
    entries: Vec<Entry>,
    /// A checksum for each page; none before the first is stored.
    checksums: Vec<u64>,
}

impl Block {
    /// The fate of page `index` of the block.
    pub fn fate(&self, index: usize) -> Fate {
        self.entries[index].into()
    }

    /// Changes it.
    pub fn set(&mut self, index: usize, fate: Fate) {
        self.entries[index] = fate.into();
    }

    /// Keeps the checksum of a page that goes to the store.
    pub fn set_checksum(&mut self, index: usize, checksum: u64) {
        if self.checksums.is_empty() {
            self.checksums.resize(BLOCK_PAGES, 0);
        }
        self.checksums[index] = checksum;
    }

    /// The checksum that was kept.
    pub fn checksum(&self, index: usize) -> u64 {
        self.checksums[index]
    }
}

/// The blocks of a region.
pub(super) struct Blocks(Box<[Mutex<Block>]>);

impl Blocks {
    /// For a region of so many bytes, a multiple of 2 MiB; nothing in it.
    pub fn new(len: u64) -> Self {
        let blocks = len / PAGE_SIZE / PAGES_PER_PMD;
        let empty = || Block { entries: vec![Entry::default(); BLOCK_PAGES], checksums: Vec::new() };
        Self((0..blocks).map(|_| Mutex::new(empty())).collect())
    }

    /// Locks a block. A panic while it was locked left its entries whole: each is one word.
    pub fn lock(&self, block: usize) -> MutexGuard<'_, Block> {
        self.0[block].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fate_survives_its_entry() {
        let stored = [0, 1, SLOT_MASK].map(|slot| Fate::Stored(Slot::new(slot)));
        let others = [Fate::Absent, Fate::Resident, Fate::Leaving, Fate::Zero, Fate::Lost];
        for fate in stored.into_iter().chain(others) {
            assert_eq!(Fate::from(Entry::from(fate)), fate);
        }
        assert_eq!(Fate::from(Entry::default()), Fate::Absent);
    }
}
