//! What has become of each page, in blocks of 2 MiB.
//!
//! ```text
//!   Absent ──first touch──> Resident ──claimed──> Leaving ──stored, unwritten──> Dropping ──gone──> Stored | Zero
//!      ▲                       ▲  ▲                  │                                                    │  │
//!      └──────discarded────────┘  ├──written to──────┘                                                    │  │
//!                                 └────────────────────────────── brought back by a fault ────────────────┘  │
//!                                                                  Lost <── cannot be read back ─────────────┘
//! ```
//!
//! A block's lock is held while fates change and while missing pages are filled, and never by somebody who waits for
//! anything: not for a mapping that changes (`EAGAIN`), nor in a system call that sends an event and waits for its reader
//! (`MADV_DONTNEED`), for that reader may want the block.

use std::sync::{Mutex, MutexGuard, PoisonError};

use guest_mem::{PAGE_SIZE, PAGES_PER_PMD};

use crate::store::Slot;

/// What has become of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing was ever there, or it was discarded: it reads as zeros.
    Absent,
    /// In memory.
    Resident,
    /// In memory, write-protected, being copied out by the claim of this number.
    Leaving(u64),
    /// Stored, and on the way out of memory: nobody may touch it before it is gone.
    Dropping(Then),
    /// In the store.
    Stored(Slot),
    /// Evicted; all of it was zero, which is all there is to know.
    Zero,
    /// The store cannot give it back.
    Lost,
}

/// What a page is once it is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// In the store.
    Stored(Slot),
    /// Zeros, as it was evicted.
    Zero,
    /// Zeros, because it was discarded meanwhile.
    Absent,
}

impl From<Then> for Fate {
    fn from(then: Then) -> Self {
        match then {
            Then::Stored(slot) => Self::Stored(slot),
            Then::Zero => Self::Zero,
            Then::Absent => Self::Absent,
        }
    }
}

impl Fate {
    /// Whether a fault has to bring it back.
    pub const fn is_out(self) -> bool {
        matches!(self, Self::Stored(_) | Self::Zero)
    }
}

/// A fate in eight bytes: the kind in the top one, a slot or the number of a claim in the rest.
#[derive(Clone, Copy, Default)]
struct Entry(u64);

const KIND_SHIFT: u32 = 56;
const SLOT_MASK: u64 = (1 << KIND_SHIFT) - 1;

impl Entry {
    fn slot(self) -> Slot {
        Slot::from_raw(self.0 & SLOT_MASK).unwrap_or_default()
    }
}

impl From<Fate> for Entry {
    fn from(fate: Fate) -> Self {
        let (kind, slot) = match fate {
            Fate::Absent => (0, 0),
            Fate::Resident => (1, 0),
            Fate::Leaving(claim) => (2, claim & SLOT_MASK),
            Fate::Stored(slot) => (3, slot.raw()),
            Fate::Zero => (4, 0),
            Fate::Lost => (5, 0),
            Fate::Dropping(Then::Stored(slot)) => (6, slot.raw()),
            Fate::Dropping(Then::Zero) => (7, 0),
            Fate::Dropping(Then::Absent) => (8, 0),
        };
        Self(kind << KIND_SHIFT | slot)
    }
}

impl From<Entry> for Fate {
    fn from(entry: Entry) -> Self {
        match entry.0 >> KIND_SHIFT {
            0 => Self::Absent,
            1 => Self::Resident,
            2 => Self::Leaving(entry.0 & SLOT_MASK),
            3 => Self::Stored(entry.slot()),
            4 => Self::Zero,
            6 => Self::Dropping(Then::Stored(entry.slot())),
            7 => Self::Dropping(Then::Zero),
            8 => Self::Dropping(Then::Absent),
            _ => Self::Lost,
        }
    }
}

/// Pages of a block.
pub(crate) const BLOCK_PAGES: usize = PAGES_PER_PMD as usize;

/// The pages of one block.
#[derive(Default)]
pub(crate) struct Block {
    entries: Vec<Entry>,
    /// A checksum for each page; none before the first is stored.
    checksums: Vec<u32>,
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
    pub fn set_checksum(&mut self, index: usize, checksum: u32) {
        if self.checksums.is_empty() {
            self.checksums.resize(BLOCK_PAGES, 0);
        }
        self.checksums[index] = checksum;
    }

    /// The checksum that was kept.
    pub fn checksum(&self, index: usize) -> u32 {
        self.checksums[index]
    }
}

/// The blocks of a region.
pub(crate) struct Blocks(Box<[Mutex<Block>]>);

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

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = MutexGuard<'_, Block>> {
        (0..self.0.len()).map(|block| self.lock(block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fate_survives_its_entry() {
        let slots = [0, 1, SLOT_MASK].map(|slot| Slot::from_raw(slot).unwrap());
        let stored = slots.map(Fate::Stored).into_iter();
        let dropping =
            slots.map(Then::Stored).into_iter().chain([Then::Zero, Then::Absent]).map(Fate::Dropping);
        let others = [Fate::Absent, Fate::Resident, Fate::Leaving(7), Fate::Zero, Fate::Lost];
        for fate in stored.chain(dropping).chain(others) {
            assert_eq!(Fate::from(Entry::from(fate)), fate);
        }
        assert_eq!(Fate::from(Entry::default()), Fate::Absent);
    }
}
