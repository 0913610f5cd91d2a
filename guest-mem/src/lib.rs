//! Guest RAM for zapscope.
//!
//! Addresses and half-open ranges of three address spaces, memslots as plain data, regions of memory and
//! what backs them, what a page really is (pagemap), and the operations that take pages away. Knows nothing
//! of KVM and nothing of range policies.

mod address;
mod range;
mod slots;
mod victim;

pub use address::{Address, Gfn, Gpa, Hva, PAGE_SHIFT, PAGE_SIZE, PAGES_PER_PMD, PMD_SIZE};
pub use range::{AddressRange, Chunks, GfnRange, GpaRange, HvaRange};
pub use slots::{Memslot, SlotError, SlotId, SlotTable, SlotTableBuilder};
pub use victim::{MapLevel, Order, Victim};
