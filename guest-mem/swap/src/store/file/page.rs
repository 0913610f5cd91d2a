//! The pages of the file, by their numbers.

use guest_mem::PAGE_SIZE;

use crate::store::Slot;

/// A page of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FilePage(u64);

impl FilePage {
    pub(super) const FIRST: Self = Self(0);

    /// The page of this number, from 0.
    pub(super) const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The page in a slot, if the slot is one of a file.
    pub(super) fn of(slot: Slot) -> Option<Self> {
        slot.raw().checked_sub(1).map(Self)
    }

    /// Its slot: slot 0 is no page, so page 0 is in slot 1.
    pub(super) fn slot(self) -> Slot {
        Slot::packed(self.0 + 1)
    }

    pub(super) fn number(self) -> u64 {
        self.0
    }

    /// Its place in the file, in bytes.
    pub(super) fn offset(self) -> u64 {
        self.0 * PAGE_SIZE
    }

    /// The page this many pages after it.
    pub(super) fn after(self, pages: u64) -> Self {
        Self(self.0 + pages)
    }
}

/// Consecutive pages of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub first: FilePage,
    pub pages: u64,
}

impl Extent {
    pub(super) const EMPTY: Self = Self { first: FilePage::FIRST, pages: 0 };

    /// The pages from `first` up to `end`, which is not one of them.
    pub(super) fn between(first: FilePage, end: FilePage) -> Self {
        Self { first, pages: end.0 - first.0 }
    }

    /// The page behind its last one.
    pub(super) fn end(self) -> FilePage {
        self.first.after(self.pages)
    }

    /// Each page in turn.
    pub(super) fn each(self) -> impl Iterator<Item = FilePage> + Clone {
        (self.first.0..self.end().0).map(FilePage)
    }
}
