//! The two kinds of listener, which cannot be mixed.
//!
//! | kind | holds | is told by | examples |
//! | --- | --- | --- | --- |
//! | [`Shadowing`] | translations of its own | `invalidate_range_start` / `_end` | KVM; [`SoftMmu`](crate::SoftMmu) |
//! | [`Sharing`] | a TLB over the CPU's page tables | `invalidate_secondary_tlbs` (before 6.6 `invalidate_range`) | an IOMMU doing SVA; [`SharedTlb`](crate::SharedTlb) |
//!
//! A shadowing listener must drop its translations *before* the primary MMU changes and keep new ones out
//! *until after*, hence the bracket. A sharing listener walks the new page table as soon as it is flushed,
//! so one call *after* the change is enough, and an earlier one would be useless.
//!
//! The kernel says in `__mmu_notifier_register`: "Subsystems should only register for
//! invalidate_secondary_tlbs() or invalidate_range_start()/end() callbacks, not both", and warns at run
//! time. Here a listener names its kind once, and neither "both" nor "none" compiles.
//!
//! The kernel also has starts that must not wait (`MMU_NOTIFIER_RANGE_BLOCKABLE` unset). Only the OOM reaper makes such
//! a start, for a process that is about to end with its VMs, so no operation here does.
//!
//! One kind:
//!
//! ```
//! use guest_mem::HvaRange;
//! use notifier_bridge::{Bridge, Listener, Policy, Sharing, SharingMmu};
//!
//! struct Iotlb;
//! impl Listener for Iotlb {
//!     type Kind = Sharing;
//! }
//! impl SharingMmu for Iotlb {
//!     fn invalidate_secondary_tlbs(&self, _range: HvaRange) {}
//! }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let slots = std::sync::Arc::new(guest_mem::SlotTableBuilder::new(1).build()?);
//! let bridge = Bridge::new(Policy::Modern, slots).sharing(std::sync::Arc::new(Iotlb));
//! # Ok(())
//! # }
//! ```
//!
//! Both kinds: `ShadowingMmu` wants `Kind = Shadowing`, and there is one `Kind`.
//!
//! ```compile_fail,E0271
//! use guest_mem::HvaRange;
//! use notifier_bridge::{Listener, Sharing, ShadowingMmu, SharingMmu, Zapped};
//!
//! struct Greedy;
//! impl Listener for Greedy {
//!     type Kind = Sharing;
//! }
//! impl SharingMmu for Greedy {
//!     fn invalidate_secondary_tlbs(&self, _range: HvaRange) {}
//! }
//! impl ShadowingMmu for Greedy {
//!     fn invalidate_range_start(&self, _: HvaRange) -> Zapped {
//!         Zapped::NOTHING
//!     }
//!     fn invalidate_range_end(&self, _: HvaRange) {}
//! }
//! ```
//!
//! No kind's trait: naming a kind is not enough to register.
//!
//! ```compile_fail,E0277
//! use notifier_bridge::{Bridge, Listener, Policy, Shadowing};
//!
//! struct Deaf;
//! impl Listener for Deaf {
//!     type Kind = Shadowing;
//! }
//! let slots = std::sync::Arc::new(guest_mem::SlotTableBuilder::new(1).build().expect("no slots"));
//! let bridge = Bridge::new(Policy::Modern, slots).shadowing(std::sync::Arc::new(Deaf));
//! ```

use guest_mem::HvaRange;

use crate::count::Count;

/// The kind of a listener that keeps its own translations.
#[derive(Clone, Copy, Debug)]
pub enum Shadowing {}

/// The kind of a listener that walks the CPU's page tables and caches what it found.
#[derive(Clone, Copy, Debug)]
pub enum Sharing {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Shadowing {}
    impl Sealed for super::Sharing {}
}

/// [`Shadowing`] or [`Sharing`], and nothing else.
pub trait ListenerKind: sealed::Sealed {}
impl ListenerKind for Shadowing {}
impl ListenerKind for Sharing {}

/// A listener to invalidations, of exactly one kind.
pub trait Listener: Send + Sync {
    /// [`Shadowing`] or [`Sharing`].
    type Kind: ListenerKind;
}

/// The translations that a shadowing listener dropped, which can be more than it was told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zapped {
    /// Memslots that lost translations.
    pub slots: u64,
    /// Bytes dropped: whole slots where a slot can only go whole.
    pub bytes: u64,
    /// Leaf entries of 4 KiB dropped, if the listener can tell.
    pub sptes_4k: Count,
    /// Leaf entries of 2 MiB dropped, if the listener can tell.
    pub sptes_2m: Count,
}

impl Zapped {
    /// Known to be nothing.
    pub const NOTHING: Self = Self { slots: 0, bytes: 0, sptes_4k: Count::ZERO, sptes_2m: Count::ZERO };
}

impl std::ops::AddAssign for Zapped {
    fn add_assign(&mut self, other: Self) {
        self.slots += other.slots;
        self.bytes += other.bytes;
        self.sptes_4k += other.sptes_4k;
        self.sptes_2m += other.sptes_2m;
    }
}

/// A secondary MMU with translations of its own.
pub trait ShadowingMmu: Listener<Kind = Shadowing> {
    /// Drops every translation of `range` and lets none be installed there until
    /// [`invalidate_range_end`](Self::invalidate_range_end) with the same range. When it returns, no dropped translation is
    /// in use any more. It may wait for that.
    fn invalidate_range_start(&self, range: HvaRange) -> Zapped;

    /// Lets translations of `range` be installed again. Called once for each
    /// [`invalidate_range_start`](Self::invalidate_range_start) that returned.
    fn invalidate_range_end(&self, range: HvaRange);

    /// Drops every translation of one page whose mapping has *already* changed (up to 4.12).
    fn invalidate_page(&self, page: HvaRange) -> Zapped {
        let zapped = self.invalidate_range_start(page);
        self.invalidate_range_end(page);
        zapped
    }
}

/// A secondary MMU that shares the CPU's page tables and has only a TLB of its own.
pub trait SharingMmu: Listener<Kind = Sharing> {
    /// Drops cached translations of `range`. The page table has already changed.
    fn invalidate_secondary_tlbs(&self, range: HvaRange);
}
