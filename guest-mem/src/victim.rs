//! The victim of a reclaim operation, as the reverse map would describe it.

use std::fmt;

use crate::address::{PAGE_SHIFT, PAGE_SIZE, PAGES_PER_PMD};
use crate::range::HvaRange;

/// A folio's order: log2 of its base pages. 0 is a 4 KiB page, 9 a 2 MiB folio, 18 a 1 GiB page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Order(u8);

impl Order {
    /// A single base page.
    pub const BASE: Self = Self(0);
    /// The folio that one PMD entry maps.
    pub const PMD: Self = Self(9);

    /// The order, or `None` above 18 (1 GiB), the largest folio x86-64 maps.
    pub const fn new(order: u8) -> Option<Self> {
        if order <= 18 { Some(Self(order)) } else { None }
    }
    /// The order of a folio of exactly `bytes`, or `None` if no folio has that size.
    pub fn of_bytes(bytes: u64) -> Option<Self> {
        if !bytes.is_power_of_two() || bytes < PAGE_SIZE {
            return None;
        }
        Self::new((bytes.trailing_zeros() - PAGE_SHIFT) as u8)
    }
    /// log2 of the base pages.
    pub const fn get(self) -> u8 {
        self.0
    }
    /// Base pages in the folio.
    pub const fn pages(self) -> u64 {
        1 << self.0
    }
    /// Bytes in the folio.
    pub const fn bytes(self) -> u64 {
        PAGE_SIZE << self.0
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "order-{}", self.0)
    }
}

/// How the primary MMU maps a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MapLevel {
    /// By a page-table entry of 4 KiB.
    Pte,
    /// By a PMD entry of 2 MiB.
    Pmd,
}

impl MapLevel {
    /// Base pages under one entry of this level.
    pub const fn pages(self) -> u64 {
        match self {
            Self::Pte => 1,
            Self::Pmd => PAGES_PER_PMD,
        }
    }
}

/// One folio (or the mapped part of one) about to lose its mapping.
///
/// `pages` begins at the address of the folio's first mapped page in this mapping, the `A` of the range
/// formulas, and covers what the operation takes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Victim {
    /// The pages taken: page aligned, not empty.
    pub pages: HvaRange,
    /// The folio's order at the moment the reverse map is walked (after a split, if the kernel splits first).
    pub order: Order,
    /// How the primary MMU mapped it at that moment.
    pub level: MapLevel,
    /// Whether the folio is anonymous (not shmem, not a file): the eras before 6.6 told sharing listeners of
    /// each anonymous PTE inside the walk.
    pub anonymous: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_and_sizes_correspond() {
        assert_eq!(Order::of_bytes(4096), Some(Order::BASE));
        assert_eq!(Order::of_bytes(2 << 20), Some(Order::PMD));
        assert_eq!(Order::of_bytes(1 << 30).map(Order::get), Some(18));
        assert_eq!(Order::of_bytes(3), None);
        assert_eq!(Order::of_bytes(0), None);
        assert_eq!(Order::of_bytes(4 << 30), None);
        assert_eq!(Order::PMD.pages(), PAGES_PER_PMD);
    }
}
