//! A VM and the memory of its guest, as one: the memory of a memslot stays mapped as long as the slot can be used.
//!
//! ```text
//!   Vm ── file, memslots, and the regions behind them
//!    ▲         exchange:  slots out ──> slots in ──> regions whose slots are out are let go of
//!    │                       └── KVM refuses ── the way back ── KVM refuses ──> no vCPU is let in, all stays mapped
//!    └── GuestCpu: the file of a vCPU. The last of them ends before the memory does
//! ```
//!
//! A guest whose slot outlives its memory would read and write the next mapping of this process at that address.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_mem::{Memslot, Region, RegionError, SlotTable, with_causes};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{VcpuFd, VmFd};

use super::vm_error::{VmError, failed};
use super::vm_shared::VmShared;
use guest::CrashKind;

/// `KVM_SET_USER_MEMORY_REGION`.
pub(super) trait SetSlot: fmt::Debug + Send + Sync {
    /// Makes a memslot; with a size of 0 deletes it.
    ///
    /// # Safety
    /// The slot's host range stays mapped until the slot is deleted, or no vCPU can run any more.
    unsafe fn set(&self, slot: kvm_userspace_memory_region) -> Result<(), kvm_ioctls::Error>;
}

impl SetSlot for VmFd {
    unsafe fn set(&self, slot: kvm_userspace_memory_region) -> Result<(), kvm_ioctls::Error> {
        // SAFETY: the caller's own promise.
        unsafe { self.set_user_memory_region(slot) }
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Vm {
    // Before the memory: these close the file, unless a vCPU holds this whole value.
    slots: Arc<dyn SetSlot>,
    file: Arc<VmFd>,
    installed: Mutex<Installed>,
    shared: Arc<VmShared>,
}

/// The guest's memory now.
#[derive(Debug)]
pub(super) struct Installed {
    /// Its memslots.
    pub table: Arc<SlotTable>,
    /// The regions that they point to.
    behind: Vec<Arc<Region>>,
}

impl Vm {
    /// A VM without memory.
    pub fn new(file: VmFd, shared: Arc<VmShared>) -> Self {
        let file = Arc::new(file);
        Self::with_slots(file.clone(), file, shared)
    }

    /// The same with memslots set through `slots`, which a test may wrap around KVM.
    pub fn with_slots(file: Arc<VmFd>, slots: Arc<dyn SetSlot>, shared: Arc<VmShared>) -> Self {
        let nothing = Installed { table: Arc::new(SlotTable::default()), behind: Vec::new() };
        Self { slots, file, installed: Mutex::new(nothing), shared }
    }

    /// KVM's handle of the VM. For all but memslots and vCPUs, of which this value must know.
    pub fn file(&self) -> &VmFd {
        &self.file
    }

    /// What the threads that act on the VM share.
    pub fn shared(&self) -> &Arc<VmShared> {
        &self.shared
    }

    /// Makes a vCPU.
    pub fn create_vcpu(self: &Arc<Self>, index: u32) -> Result<GuestCpu, VmError> {
        let file = self.file.create_vcpu(index.into()).map_err(failed("KVM_CREATE_VCPU"))?;
        Ok(GuestCpu { file, vm: self.clone() })
    }

    /// The guest's memory as it is, locked against changes.
    pub fn lock(&self) -> MutexGuard<'_, Installed> {
        self.installed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the VM's memslots those of `new`, which lie in `behind`; equal slots stay. No vCPU runs meanwhile.
    ///
    /// # Errors
    /// KVM refuses. All is then as it was, or no vCPU is let in any more.
    pub fn exchange(&self, new: Arc<SlotTable>, behind: Vec<Arc<Region>>) -> Result<(), VmError> {
        let covered = |slot: &Memslot| behind.iter().any(|region| region.range().covers(slot.hva_range()));
        assert!(new.as_slice().iter().all(covered), "a memslot lies outside of its memory");
        let mut installed = self.lock();
        // A gate that cannot be held is shut for good.
        let _hold = self.shared.gate.hold();
        if let Some(why) = self.shared.gate.shut() {
            return Err(VmError::Broken(Box::new(why.clone())));
        }
        match replace(&*self.slots, &installed.table, &new) {
            Ok(()) => {
                *installed = Installed { table: new, behind };
                Ok(())
            }
            Err(Refused::Undone(error)) => Err(error),
            Err(Refused::Torn(error)) => {
                // It is not known which slots exist: the regions of all of them are kept.
                installed.behind.extend(behind);
                installed.table = Arc::new(SlotTable::default());
                self.shared.gate.shut_for_good(CrashKind::Memslots(with_causes(&error)));
                Err(error)
            }
        }
    }

    /// Deletes a memslot and puts the same one back: every translation through it is gone. The caller keeps the vCPUs out
    /// of the guest meanwhile, and has `installed` from this VM.
    ///
    /// # Errors
    /// KVM refuses, and the slot may be gone: no vCPU is let in any more.
    pub fn reinstall(&self, installed: &mut Installed, slot: &Memslot) -> Result<(), VmError> {
        let done =
            set(&*self.slots, slot, Direction::Out).and_then(|()| set(&*self.slots, slot, Direction::In));
        if let Err(error) = &done {
            installed.table = Arc::new(SlotTable::default());
            self.shared.gate.shut_for_good(CrashKind::Memslots(with_causes(error)));
        }
        done
    }

    /// The limit by which the kernel refuses memory of the guest, if it does; an `EFAULT` from `KVM_RUN` does not tell.
    pub fn not_given(&self) -> Option<String> {
        let behind = self.lock().behind.clone();
        behind.iter().find_map(|region| match region.reach(region.range()) {
            Err(RegionError::NotGiven { limit, .. }) => Some(limit.to_string()),
            _ => None,
        })
    }
}

/// A vCPU's file, and the VM on whose memory it runs.
#[derive(Debug)]
pub struct GuestCpu {
    // First: with the last of a VM's files its guest ends, and then its memory may go.
    file: VcpuFd,
    vm: Arc<Vm>,
}

impl GuestCpu {
    /// For running it, and for calls that take it exclusively. Not public: two files that a caller swapped would each be
    /// kept with the memory of the other's VM.
    pub(crate) fn file_mut(&mut self) -> &mut VcpuFd {
        &mut self.file
    }

    /// As [`Vm::not_given`].
    pub(super) fn not_given(&self) -> Option<String> {
        self.vm.not_given()
    }
}

impl Deref for GuestCpu {
    type Target = VcpuFd;

    fn deref(&self) -> &VcpuFd {
        &self.file
    }
}

/// Memslots were not replaced.
#[derive(Debug)]
enum Refused {
    /// All is as it was.
    Undone(VmError),
    /// KVM refused the way back, too.
    Torn(VmError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    In,
    Out,
}

impl Direction {
    fn back(self) -> Self {
        match self {
            Self::In => Self::Out,
            Self::Out => Self::In,
        }
    }
}

/// Takes out the slots that only `old` has, and puts in those that only `new` has. The caller keeps the memory of
/// both mapped until it has seen the result.
fn replace(slots: &dyn SetSlot, old: &SlotTable, new: &SlotTable) -> Result<(), Refused> {
    let in_both = |slot: &Memslot, other: &SlotTable| {
        other.find_gpa(slot.gpa_range().start()).is_some_and(|same| same == slot)
    };
    let out = old.as_slice().iter().filter(|slot| !in_both(slot, new)).map(|slot| (slot, Direction::Out));
    let into = new.as_slice().iter().filter(|slot| !in_both(slot, old)).map(|slot| (slot, Direction::In));
    let steps: Vec<_> = out.chain(into).collect();
    for (done, &(slot, direction)) in steps.iter().enumerate() {
        let Err(error) = set(slots, slot, direction) else { continue };
        let mut back = steps[..done].iter().rev();
        return match back.try_for_each(|&(slot, direction)| set(slots, slot, direction.back())) {
            Ok(()) => Err(Refused::Undone(error)),
            Err(_) => Err(Refused::Torn(error)),
        };
    }
    Ok(())
}

fn set(slots: &dyn SetSlot, slot: &Memslot, direction: Direction) -> Result<(), VmError> {
    let len = if direction == Direction::In { slot.len() } else { 0 };
    let region = kvm_userspace_memory_region {
        slot: slot.id().0,
        flags: 0,
        guest_phys_addr: slot.gpa_range().start().get(),
        memory_size: len,
        userspace_addr: slot.hva_range().start().get(),
    };
    // SAFETY: only `Vm` calls this, and keeps the memory of its slots mapped as long as it or a vCPU lives.
    unsafe { slots.set(region) }.map_err(|source| {
        let attempt = if direction == Direction::In { "make" } else { "delete" };
        VmError::Slot { attempt, slot: slot.id().0, gpa: slot.gpa_range().start(), len: slot.len(), source }
    })
}

#[cfg(test)]
mod tests;
