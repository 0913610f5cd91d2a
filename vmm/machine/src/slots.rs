//! The listener that zaps: it makes KVM drop its translations of an invalidated range, in one of three ways.
//!
//! | way | dropped | how | vCPUs |
//! | --- | --- | --- | --- |
//! | [`ZapMethod::Memslot`] | every memslot the range touches, whole | the slot deleted and put back | stopped, so that none sees the hole |
//! | [`ZapMethod::Protect`] | the range | `mprotect` to read-only and back; KVM follows by its own notifier | run on; a write that meets the moment is repeated |
//! | [`ZapMethod::Unmap`] | the range, of shared memory | the page-table entries dropped; the pages stay in the page cache | run on |
//!
//! Taking a memslot away and putting it back is the only way user space has to *ask KVM itself* for a zap; the
//! other two let the kernel's own mmu_notifier chain do it. With KVM's default quirk
//! (`KVM_X86_QUIRK_SLOT_ZAP_ALL`) deleting one slot drops every translation of the VM.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use guest_mem::{HvaRange, Memslot, Region, with_causes};
use notifier_bridge::{Count, Listener, Shadowing, ShadowingMmu, Zapped};

use super::memslots::Installed;
use super::stats::Leaves;
use super::vm::VmCore;
use guest::CrashKind;

/// How translations are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZapMethod {
    /// Delete the memslots and put them back.
    Memslot,
    /// Toggle the protection of the range.
    Protect,
    /// Unmap the range of shared memory.
    Unmap,
}

/// Whether each zap is surrounded by two readings of KVM's statistics, about a microsecond each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accounting {
    /// Translations dropped are counted.
    On,
    /// They are not, and reported as unknown.
    Off,
}

/// The listener that makes KVM drop its translations of an invalidated range.
#[derive(Debug)]
pub struct KvmSlots {
    core: Arc<VmCore>,
    method: ZapMethod,
    accounting: Accounting,
}

impl KvmSlots {
    /// The listener for one VM.
    pub fn new(core: Arc<VmCore>, method: ZapMethod, accounting: Accounting) -> Self {
        Self { core, method, accounting }
    }

    /// Drops KVM's translations of `range`, and those beyond it that the method drops with them; none once the memory is no
    /// longer the guest's.
    ///
    /// If KVM or the kernel refuses to restore the memslot or the protection, no vCPU enters the guest again, and a thread
    /// that waits for one gets the reason: a guest that ran on without its memory would be wrong, not slow.
    pub fn zap(&self, range: HvaRange) -> Zapped {
        // One zap at a time in a VM: a slot that two threads delete and put back would be put back too early.
        let mut installed = self.core.vm.lock();
        if !Arc::ptr_eq(&installed.table, &self.core.slots) {
            return Zapped::NOTHING;
        }
        match self.method {
            ZapMethod::Memslot => self.zap_slots(&mut installed, range),
            ZapMethod::Protect => self.zap_exactly(range, |region, part| self.toggle(region, part)),
            ZapMethod::Unmap => self.zap_exactly(range, |region, part| self.unmap(region, part)),
        }
    }

    fn zap_slots(&self, installed: &mut Installed, range: HvaRange) -> Zapped {
        let slots = self.core.slots.covering(range);
        if slots.is_empty() {
            return Zapped::NOTHING;
        }
        // No memslot is deleted while a vCPU may be inside. The gate is shut by then, which threads that wait for it learn.
        let Ok(hold) = self.core.shared.gate.hold() else { return Zapped::NOTHING };
        let before = self.leaves();
        // A refusal has shut the gate, which threads that wait for it learn.
        let refused = slots.iter().any(|slot| self.core.vm.reinstall(installed, slot).is_err());
        let after = self.leaves();
        drop(hold);
        let all = self.core.slot_zap_drops_all || refused;
        let dropped = if all { self.core.slots.as_slice() } else { slots };
        let arena = self.core.arena().range();
        if dropped.iter().any(|slot| !arena.covers(slot.hva_range())) {
            self.core.low_zapped.store(true, Ordering::Relaxed);
        }
        zapped(slots.len() as u64, dropped.iter().map(Memslot::len).sum(), before, after)
    }

    /// Zaps the part of `range` in each region by `zap`, which returns the bytes it dropped.
    fn zap_exactly(&self, range: HvaRange, zap: impl Fn(&Region, HvaRange) -> u64) -> Zapped {
        let before = self.leaves();
        let bytes = self
            .core
            .regions()
            .filter_map(|region| Some((region, region.range().intersection(range)?)))
            .map(|(region, part)| {
                if !Arc::ptr_eq(region, self.core.arena()) {
                    self.core.low_zapped.store(true, Ordering::Relaxed);
                }
                zap(region, part)
            })
            .sum();
        zapped(0, bytes, before, self.leaves())
    }

    fn toggle(&self, region: &Region, part: HvaRange) -> u64 {
        // A block that gets its seam now is announced whole, once.
        let seams: u64 = region
            .unseamed_edges(part)
            .map(|block| block.len() - block.intersection(part).map_or(0, HvaRange::len))
            .sum();
        // The arena is the guest's alone; elsewhere devices write too, and would get SIGSEGV or EFAULT.
        let shared = &self.core.shared;
        let _alone = (!std::ptr::eq(region, &**self.core.arena()))
            .then(|| shared.host_writes.write().unwrap_or_else(PoisonError::into_inner));
        let _window = shared.window.open();
        if let Err(error) = guest_mem::toggle_protection(region, part) {
            // It may be left read-only.
            self.give_up(&error);
        }
        part.len() + seams
    }

    fn unmap(&self, region: &Region, part: HvaRange) -> u64 {
        if !region.backing().is_shared() {
            // Low memory is private, also if the arena is shared.
            return self.toggle(region, part);
        }
        if let Err(error) = guest_mem::unmap_shared(region, part) {
            // Not every translation went.
            self.give_up(&error);
        }
        part.len()
    }

    /// Ends a guest whose memory is not as it should be.
    fn give_up(&self, error: &(dyn std::error::Error + 'static)) {
        // Whether the hold succeeds or not, no vCPU comes in again.
        let _hold = self.core.shared.gate.hold();
        self.core.shared.gate.shut_for_good(CrashKind::Memslots(with_causes(error)));
    }

    fn leaves(&self) -> Option<Leaves> {
        match self.accounting {
            Accounting::On => self.core.stats.leaves(),
            Accounting::Off => None,
        }
    }
}

fn zapped(slots: u64, bytes: u64, before: Option<Leaves>, after: Option<Leaves>) -> Zapped {
    // vCPUs that run on can fault in between, and leave more entries than before: the count is 0 then.
    let dropped = |get: fn(Leaves) -> u64| {
        Count::from(before.zip(after).map(|(before, after)| get(before).saturating_sub(get(after))))
    };
    Zapped {
        slots,
        bytes,
        sptes_4k: dropped(|leaves| leaves.pages_4k),
        sptes_2m: dropped(|leaves| leaves.pages_2m),
    }
}

impl Listener for KvmSlots {
    type Kind = Shadowing;
}

impl ShadowingMmu for KvmSlots {
    fn invalidate_range_start(&self, range: HvaRange) -> Zapped {
        self.zap(range)
    }

    /// Nothing to do: KVM's own notifier keeps faults out while the kernel changes the mapping. This listener
    /// adds width to what is dropped, not to how long.
    fn invalidate_range_end(&self, _range: HvaRange) {}
}

#[cfg(test)]
mod tests;
