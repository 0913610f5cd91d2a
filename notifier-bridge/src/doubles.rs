//! Stand-ins that the tests share: listeners that record or misbehave, and a primary MMU made of numbers.

mod listeners;
mod primary;

use guest_mem::{Gpa, Hva, HvaRange, MapLevel, Order, PAGE_SIZE, SlotTable, SlotTableBuilder, Victim};

pub(crate) use listeners::{Journal, PanicsOnce, Told};
pub(crate) use primary::{FakePrimary, Pfn};

/// `[start, start + len)`, in bytes.
pub(crate) fn range(start: u64, len: u64) -> HvaRange {
    HvaRange::with_len(Hva::new(start), len).unwrap()
}

/// `count` pages from page number `first` on.
pub(crate) fn pages(first: u64, count: u64) -> HvaRange {
    range(first * PAGE_SIZE, count * PAGE_SIZE)
}

/// An anonymous folio of this order, whole, mapped by PTEs.
pub(crate) fn folio_at(start: u64, order: u8) -> Victim {
    let order = Order::new(order).unwrap();
    Victim { pages: range(start, order.bytes()), order, level: MapLevel::Pte, anonymous: true }
}

/// Slots over regions of (gpa, hva, bytes, granule).
pub(crate) fn slots(regions: &[(u64, u64, u64, u64)]) -> SlotTable {
    let mut builder = SlotTableBuilder::new(4096);
    for &(gpa, hva, len, granule) in regions {
        builder.add_region(Gpa::new(gpa), range(hva, len), granule).unwrap();
    }
    builder.build().unwrap()
}
