//! The state of each page in the swap, in blocks of 2 MiB.
//!
//! ```text
//!   Absent ──first touch──> Resident ──claimed──> Leaving ──stored, unwritten──> Dropping ──gone──> Stored | Zero
//!      ▲                       ▲  ▲                  │                                                    │  │
//!      └──────discarded────────┘  ├──written to──────┘                                                    │  │
//!                                 └────────────────────────────── brought back by a fault ────────────────┘  │
//!                                                                  Lost <── cannot be read back ─────────────┘
//! ```
//!
//! A block's lock is held while states change and while missing pages are filled. It is never held during a wait: neither
//! for a mapping that changes (`EAGAIN`), nor in a system call that sends an event and waits for its reader
//! (`MADV_DONTNEED`), because the reader may need the block.

use std::sync::{Mutex, MutexGuard, PoisonError};

use guest_mem::{PAGE_SIZE, PAGES_PER_PMD};

use crate::store::Slot;

/// The state of a page in the swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwapState {
    /// Never touched, or discarded: it reads as zeros.
    Absent,
    /// In memory.
    Resident,
    /// In memory, write-protected, being copied out by the claim of this number.
    Leaving(u64),
    /// Stored, and being dropped from memory: a fault waits until it is gone.
    Dropping(AfterDrop),
    /// In the store.
    Stored(Slot),
    /// Evicted; all of it was zero, so nothing is in the store.
    Zero,
    /// The store cannot give it back.
    Lost,
}

/// The state of a page once it is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterDrop {
    /// In the store.
    Stored(Slot),
    /// Zeros, as it was evicted.
    Zero,
    /// Zeros, because it was discarded meanwhile.
    Absent,
}

impl From<AfterDrop> for SwapState {
    fn from(then: AfterDrop) -> Self {
        match then {
            AfterDrop::Stored(slot) => Self::Stored(slot),
            AfterDrop::Zero => Self::Zero,
            AfterDrop::Absent => Self::Absent,
        }
    }
}

impl SwapState {
    /// Whether a fault has to bring it back.
    pub const fn is_out(self) -> bool {
        matches!(self, Self::Stored(_) | Self::Zero)
    }
}

/// A state in eight bytes: the kind in the top one, a slot or the number of a claim in the rest.
#[derive(Clone, Copy, Default)]
struct Entry(u64);

const KIND_SHIFT: u32 = 56;
const SLOT_MASK: u64 = (1 << KIND_SHIFT) - 1;

impl Entry {
    fn slot(self) -> Slot {
        Slot::from_raw(self.0 & SLOT_MASK).unwrap_or_default()
    }
}

impl From<SwapState> for Entry {
    fn from(state: SwapState) -> Self {
        let (kind, slot) = match state {
            SwapState::Absent => (0, 0),
            SwapState::Resident => (1, 0),
            SwapState::Leaving(claim) => (2, claim & SLOT_MASK),
            SwapState::Stored(slot) => (3, slot.raw()),
            SwapState::Zero => (4, 0),
            SwapState::Lost => (5, 0),
            SwapState::Dropping(AfterDrop::Stored(slot)) => (6, slot.raw()),
            SwapState::Dropping(AfterDrop::Zero) => (7, 0),
            SwapState::Dropping(AfterDrop::Absent) => (8, 0),
        };
        Self(kind << KIND_SHIFT | slot)
    }
}

impl From<Entry> for SwapState {
    fn from(entry: Entry) -> Self {
        match entry.0 >> KIND_SHIFT {
            0 => Self::Absent,
            1 => Self::Resident,
            2 => Self::Leaving(entry.0 & SLOT_MASK),
            3 => Self::Stored(entry.slot()),
            4 => Self::Zero,
            6 => Self::Dropping(AfterDrop::Stored(entry.slot())),
            7 => Self::Dropping(AfterDrop::Zero),
            8 => Self::Dropping(AfterDrop::Absent),
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
    /// The state of page `index` of the block.
    pub fn state(&self, index: usize) -> SwapState {
        self.entries[index].into()
    }

    /// Changes it.
    pub fn set(&mut self, index: usize, state: SwapState) {
        self.entries[index] = state.into();
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
    fn every_state_survives_its_entry() {
        let slots = [0, 1, SLOT_MASK].map(|slot| Slot::from_raw(slot).unwrap());
        let stored = slots.map(SwapState::Stored).into_iter();
        let dropping = slots
            .map(AfterDrop::Stored)
            .into_iter()
            .chain([AfterDrop::Zero, AfterDrop::Absent])
            .map(SwapState::Dropping);
        let others =
            [SwapState::Absent, SwapState::Resident, SwapState::Leaving(7), SwapState::Zero, SwapState::Lost];
        for state in stored.chain(dropping).chain(others) {
            assert_eq!(SwapState::from(Entry::from(state)), state);
        }
        assert_eq!(SwapState::from(Entry::default()), SwapState::Absent);
    }
}
