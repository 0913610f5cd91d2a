//! What makes up a VM apart from its vCPUs: the KVM file, its memory, its memslots, its statistics.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::Kvm;
use guest_abi::layout::{ARENA_GPA, low_memory};
use guest_mem::{Backing, Gpa, GpaRange, Region, SlotTable, SlotTableBuilder};
use kvm_bindings::{KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_SLOT_ZAP_ALL, kvm_enable_cap};
use kvm_ioctls::{Cap, VmFd};

use super::memslots::{GuestCpu, Vm};
use super::stats::VmStats;
use super::surroundings::Surroundings;
use super::vm_error::{VmError, failed};

/// Where Intel's KVM may keep its task state for guests in real mode; below the 4 GiB line, above all RAM.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// What a VM is made of.
#[derive(Clone, Copy, Debug)]
pub struct VmConfig {
    /// vCPUs, 1 to [`guest_abi::layout::MAX_VCPUS`].
    pub vcpus: u32,
    /// Bytes of the arena: a multiple of 2 MiB.
    pub arena: u64,
    /// What fills the arena.
    pub backing: Backing,
    /// Bytes of each of the arena's memslots.
    pub granule: u64,
    /// Whether KVM's default stays, by which one slot's zap drops every translation of the VM.
    pub slot_zap_all_quirk: bool,
}

/// A VM without its vCPUs, shared by all who act on it. The bare guest's VM has one for its whole life; a PC
/// ([`super::pc`]) makes another for each arena that is put into it.
#[derive(Debug)]
pub struct VmCore {
    pub(super) vm: Arc<Vm>,
    /// The memslots.
    pub slots: Arc<SlotTable>,
    low: Arc<[Arc<Region>]>,
    arena: Arc<Region>,
    /// What the vCPU threads share.
    pub surroundings: Arc<Surroundings>,
    /// KVM's own account of the VM.
    pub stats: Arc<VmStats>,
    /// Whether one slot's zap drops everything.
    pub slot_zap_drops_all: bool,
    /// Set when translations of other memory than the arena's are dropped.
    pub(super) low_zapped: Arc<AtomicBool>,
}

/// What a [`VmCore`] is made of where the VM has outlived another.
pub(super) struct Parts {
    pub vm: Arc<Vm>,
    pub slots: Arc<SlotTable>,
    pub low: Arc<[Arc<Region>]>,
    pub arena: Arc<Region>,
    pub stats: Arc<VmStats>,
    pub slot_zap_drops_all: bool,
    pub low_zapped: Arc<AtomicBool>,
}

impl VmCore {
    pub(super) fn from_parts(parts: Parts) -> Self {
        let Parts { vm, slots, low, arena, stats, slot_zap_drops_all, low_zapped } = parts;
        let surroundings = vm.surroundings().clone();
        Self { vm, slots, low, arena, surroundings, stats, slot_zap_drops_all, low_zapped }
    }

    /// Makes the VM: memory mapped, memslots in place, the quirk as asked for.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn new(kvm: &Kvm, config: &VmConfig) -> Result<Self, VmError> {
        let (file, slot_zap_drops_all) = create(kvm, config.slot_zap_all_quirk)?;
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
        let vm = Arc::new(Vm::new(file, Arc::new(Surroundings::new(config.vcpus, ram))));
        let (low, arena) = (Arc::new(low), Arc::new(arena));
        vm.exchange(slots.clone(), vec![low.clone(), arena.clone()])?;
        let (low, low_zapped) = (Arc::new([low]), Arc::default());
        Ok(Self::from_parts(Parts { vm, slots, low, arena, stats, slot_zap_drops_all, low_zapped }))
    }

    /// KVM's handle of the VM, for a bench of bare calls.
    ///
    /// # Safety
    /// The memslots are afterwards what they were, and no vCPU is made: what this value knows of both is what keeps the
    /// guest's memory mapped.
    pub unsafe fn kvm_vm(&self) -> &VmFd {
        self.vm.file()
    }
    /// Makes a vCPU.
    ///
    /// # Errors
    /// [`VmError::Call`].
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
        &self.surroundings.ram
    }
}

/// A VM without memory. Returns also whether a slot's zap drops everything.
pub(super) fn create(kvm: &Kvm, keep_quirk: bool) -> Result<(VmFd, bool), VmError> {
    let vm = kvm.create_vm()?;
    let slot_zap_drops_all = set_quirk(&vm, keep_quirk)?;
    if vm.check_extension(Cap::SetTssAddr) {
        vm.set_tss_address(TSS_ADDRESS).map_err(failed("KVM_SET_TSS_ADDR"))?;
    }
    report_failed_instructions(&vm);
    Ok((vm, slot_zap_drops_all))
}

/// Sets the slot-zap quirk as asked. Returns whether a slot's zap drops everything.
fn set_quirk(vm: &VmFd, keep: bool) -> Result<bool, VmError> {
    if keep {
        return Ok(true);
    }
    if !can_be_limited(vm.check_extension_raw(KVM_CAP_DISABLE_QUIRKS2.into())) {
        return Err(VmError::QuirkStays);
    }
    let cap = capability(KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_SLOT_ZAP_ALL.into());
    vm.enable_cap(&cap).map_err(failed("KVM_ENABLE_CAP(KVM_CAP_DISABLE_QUIRKS2)"))?;
    Ok(false)
}

/// Whether a slot's zap can be limited to the slot: by the quirks that can be disabled, or by what the question for them
/// failed with.
fn can_be_limited(quirks: i32) -> bool {
    u32::try_from(quirks).is_ok_and(|quirks| quirks & KVM_X86_QUIRK_SLOT_ZAP_ALL != 0)
}

/// Asks for the bytes of instructions that KVM cannot emulate. Without the capability a report lacks them.
fn report_failed_instructions(vm: &VmFd) {
    let _ = vm.enable_cap(&capability(kvm_bindings::KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1));
}

fn capability(cap: u32, argument: u64) -> kvm_enable_cap {
    kvm_enable_cap { cap, args: [argument, 0, 0, 0], ..kvm_enable_cap::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::{self, Exit};
    use crate::testing::{about_to_run, in_ring_3};
    use guest::GuestRam;

    #[test]
    fn a_zap_is_limited_where_kvm_has_that_quirk() {
        for (quirks, can) in [(-1, false), (-libc::EINVAL, false), (0, false), (0x7f, false), (0x80, true)] {
            assert_eq!(can_be_limited(quirks), can, "{quirks:#x}");
        }
        assert!(can_be_limited(0xff));
    }

    #[test]
    #[ignore = "needs: Kvm"]
    fn its_memory_is_what_is_mapped_for_it() {
        let (core, _vcpu) = about_to_run(&[]);
        let [low, arena] = core.ram() else { panic!("{:?}", core.ram()) };
        assert_eq!((low.start(), low.len()), (Gpa::new(0), core.low()[0].range().len()));
        assert_eq!((arena.start(), arena.len()), (Gpa::new(ARENA_GPA), core.arena().range().len()));
    }

    /// In ring 3, where a KVM that was not asked gives the guest #UD instead. (kvm_pvm tells it either way.)
    #[test]
    #[ignore = "needs: Kvm"]
    fn an_instruction_that_kvm_cannot_emulate_is_told() {
        // mov edi, 0x7000_0000, where no memory is; popcnt eax, [rdi]; hlt
        let popcnt = [0xf3, 0x0f, 0xb8, 0x07];
        let code = [&[0xbf, 0, 0, 0, 0x70][..], &popcnt, &[0xf4]].concat();
        let (core, mut vcpu) = about_to_run(&[]);
        in_ring_3(&GuestRam::new([(Gpa::new(0), core.low()[0].clone())]), &vcpu, &code);
        match exit::run(vcpu.file_mut()) {
            Exit::InternalError { suberror: 1, instruction } if instruction.starts_with(&popcnt) => {}
            other => panic!("{other:?}"),
        }
    }
}
