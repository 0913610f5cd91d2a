//! A VM apart from its vCPUs: the KVM file, its memory, its memslots, its statistics.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::Kvm;
use guest_abi::layout::{ARENA_GPA, low_memory};
use guest_mem::{Backing, Gpa, GpaRange, Region, SlotTable, SlotTableBuilder};
use kvm_ioctls::VmFd;

use super::arch;
use super::memslots::{GuestCpu, Vm};
use super::stats::VmStats;
use super::vm_error::VmError;
use super::vm_shared::VmShared;

/// The configuration of a VM.
#[derive(Clone, Copy, Debug)]
pub struct VmConfig {
    /// vCPUs, 1 to [`guest_abi::layout::MAX_VCPUS`].
    pub vcpus: u32,
    /// Bytes of the arena: a multiple of 2 MiB.
    pub arena: u64,
    /// The arena's backing.
    pub backing: Backing,
    /// Bytes of each of the arena's memslots.
    pub granule: u64,
    /// Whether KVM's default stays, by which one slot's zap drops every translation of the VM.
    pub slot_zap_all_quirk: bool,
}

/// A VM without its vCPUs, shared by all that act on it. The bare guest's VM has one for its whole life; a PC
/// ([`super::pc`]) makes another for each arena that is put into it.
#[derive(Debug)]
pub struct VmCore {
    pub(super) vm: Arc<Vm>,
    /// The memslots.
    pub slots: Arc<SlotTable>,
    pub(super) low: Arc<[Arc<Region>]>,
    pub(super) arena: Arc<Region>,
    /// The state that the vCPU threads share.
    pub shared: Arc<VmShared>,
    /// KVM's own account of the VM.
    pub stats: Arc<VmStats>,
    /// Whether one slot's zap drops everything.
    pub slot_zap_drops_all: bool,
    /// Set when translations of other memory than the arena's are dropped.
    pub(super) low_zapped: Arc<AtomicBool>,
}

impl VmCore {
    /// Makes the VM: memory mapped, memslots in place, the quirk as asked for.
    pub fn new(kvm: &Kvm, config: &VmConfig) -> Result<Self, VmError> {
        let (file, slot_zap_drops_all) = arch::create(kvm, config.slot_zap_all_quirk)?;
        let low = Region::map(low_memory(config.vcpus), Backing::Base4k)?;
        let arena = Region::map(config.arena, config.backing)?;
        let mut builder = SlotTableBuilder::new(kvm.get_nr_memslots() as u64);
        builder.add_region(Gpa::new(0), low.range(), low.range().len().next_power_of_two())?;
        builder.add_region(Gpa::new(ARENA_GPA), arena.range(), config.granule)?;
        let slots = Arc::new(builder.build()?);
        let ram = [(0, &low), (ARENA_GPA, &arena)]
            .map(|(gpa, region)| GpaRange::with_len(Gpa::new(gpa), region.range().len()))
            .into_iter()
            .flatten()
            .collect();
        let stats = Arc::new(VmStats::of(&file));
        let shared = Arc::new(VmShared::new(config.vcpus, ram));
        let vm = Arc::new(Vm::new(file, shared.clone()));
        let (low, arena) = (Arc::new(low), Arc::new(arena));
        vm.exchange(slots.clone(), vec![low.clone(), arena.clone()])?;
        let (low, low_zapped) = (Arc::new([low]), Arc::default());
        Ok(Self { vm, slots, low, arena, shared, stats, slot_zap_drops_all, low_zapped })
    }

    /// KVM's handle of the VM, for a bench of bare calls.
    ///
    /// # Safety
    /// The memslots are the same afterwards, and no vCPU is made: this value keeps the guest's memory mapped by what it
    /// knows of both.
    pub unsafe fn kvm_vm(&self) -> &VmFd {
        self.vm.file()
    }
    /// Makes a vCPU.
    pub fn create_vcpu(&self, index: u32) -> Result<GuestCpu, VmError> {
        self.vm.create_vcpu(index)
    }
    /// The memory under test.
    pub fn arena(&self) -> &Arc<Region> {
        &self.arena
    }
    /// The memory that is not under test. The bare guest's is one region: its image and control areas.
    pub fn low(&self) -> &[Arc<Region>] {
        &self.low
    }
    /// All of it.
    pub fn regions(&self) -> impl Iterator<Item = &Arc<Region>> {
        self.low.iter().chain([&self.arena])
    }
    /// Guest physical memory.
    pub fn ram(&self) -> &[GpaRange] {
        &self.shared.ram
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::about_to_run;

    #[test]
    #[ignore = "needs: Kvm"]
    fn its_memory_is_what_is_mapped_for_it() {
        let (core, _vcpu) = about_to_run(&[]);
        let [low, arena] = core.ram() else { panic!("{:?}", core.ram()) };
        assert_eq!((low.start(), low.len()), (Gpa::new(0), core.low()[0].range().len()));
        assert_eq!((arena.start(), arena.len()), (Gpa::new(ARENA_GPA), core.arena().range().len()));
    }
}
