//! A PC's memory: the kernel's own on node 0, and the node from which the memory under test comes.
//!
//! ```text
//! gpa 0 ──────────── 3 GiB   MMIO   4 GiB ─────────── n GiB ───────────────────────────
//!     node 0, its first part │      node 0, the rest   │ node 1: movable, no CPU
//!                                                      │   before │ arena, on loan │ after
//! ```
//!
//! Node 1 holds nothing but what the guest's agent takes from it, and the agent sees to it that this is one piece.
//! Once the agent has said where, the piece's memslots are exchanged for those of an *arena*: a fresh region with
//! the backing and the granule that a row of a scenario asks for. The guest's pages there were zero and never
//! written, and so are the new ones; so one boot serves every row.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Kvm;
use guest_mem::{Address, Backing, GpaRange, HvaRange, Region, SlotTable, SlotTableBuilder};
use kvm_ioctls::VmFd;

use crate::arch;
use crate::memslots::{SetSlot, Vm};
use crate::stats::VmStats;
use crate::vm::VmCore;
use crate::vm_error::VmError;
use crate::vm_shared::VmShared;
use guest::{Area, GuestRam};
use linux_boot::MemoryNode;

/// A VM with the memory of a PC, and without vCPUs.
#[derive(Debug)]
pub struct PcMemory {
    /// The VM, and all memory it has: an arena too, until its slots are out again.
    vm: Arc<Vm>,
    nodes: Vec<MemoryNode>,
    /// One region for each node.
    ram: Arc<[Arc<Region>]>,
    stats: Arc<VmStats>,
    slot_zap_drops_all: bool,
    /// Whether translations of other memory than an arena's have been dropped since this was last asked.
    low_zapped: Arc<AtomicBool>,
    slot_limit: u64,
    /// The range that an arena is in place of. Locked while memslots are exchanged.
    lent: Mutex<Option<GpaRange>>,
    /// Memory through which the host speaks with the guest: see [`PcMemory::control_area`].
    spoken_for: Mutex<Vec<GpaRange>>,
    /// Where devices and loaders reach the nodes' memory.
    view: GuestRam,
}

/// The place of an arena, and its kind.
#[derive(Clone, Copy, Debug)]
pub struct ArenaSpec {
    /// Guest physical addresses: 2 MiB aligned, within one movable node.
    pub range: GpaRange,
    /// Its backing.
    pub backing: Backing,
    /// Bytes of a memslot.
    pub granule: u64,
}

impl PcMemory {
    /// Maps every node's memory and gives it to a new VM.
    pub fn new(
        kvm: &Kvm,
        vcpus: u32,
        nodes: Vec<MemoryNode>,
        backing: Backing,
        keep_quirk: bool,
    ) -> Result<Self, VmError> {
        Self::with_slots(kvm, vcpus, nodes, backing, keep_quirk, |file| file)
    }

    /// The same, with memslots set through the wrapper that `slots` puts around KVM.
    fn with_slots<S: SetSlot + 'static>(
        kvm: &Kvm,
        vcpus: u32,
        nodes: Vec<MemoryNode>,
        backing: Backing,
        keep_quirk: bool,
        slots: impl FnOnce(Arc<VmFd>) -> Arc<S>,
    ) -> Result<Self, VmError> {
        let (file, slot_zap_drops_all) = arch::create(kvm, keep_quirk)?;
        let file = Arc::new(file);
        let ram = nodes
            .iter()
            .map(|node| Ok(Arc::new(Region::map(node.range.len(), backing)?)))
            .collect::<Result<Arc<[_]>, VmError>>()?;
        let stats = Arc::new(VmStats::of(&file));
        let shared = VmShared::new(vcpus, nodes.iter().map(|node| node.range).collect());
        let view = GuestRam::new(nodes.iter().map(|node| node.range.start()).zip(ram.iter().cloned()));
        let memory = Self {
            vm: Arc::new(Vm::with_slots(file.clone(), slots(file), Arc::new(shared))),
            nodes,
            ram,
            stats,
            slot_zap_drops_all,
            low_zapped: Arc::new(AtomicBool::new(true)),
            slot_limit: kvm.get_nr_memslots() as u64,
            lent: Mutex::new(None),
            spoken_for: Mutex::default(),
            view,
        };
        memory.exchange(None)?;
        Ok(memory)
    }

    /// The VM.
    pub(crate) fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }
    /// Whether one slot's zap drops everything.
    pub fn slot_zap_drops_all(&self) -> bool {
        self.slot_zap_drops_all
    }
    /// Whether translations of other memory than an arena's were dropped since this was last asked.
    pub fn take_low_zapped(&self) -> bool {
        self.low_zapped.swap(false, Ordering::Relaxed)
    }
    /// The memory map.
    pub fn nodes(&self) -> &[MemoryNode] {
        &self.nodes
    }
    /// What the vCPU threads share.
    pub fn shared(&self) -> &Arc<VmShared> {
        self.vm.shared()
    }
    /// The memory of every node, in the order of [`PcMemory::nodes`]; under an arena it is not the guest's.
    pub fn ram(&self) -> &[Arc<Region>] {
        &self.ram
    }
    /// The memslots as they are now.
    pub fn slots(&self) -> Arc<SlotTable> {
        self.vm.lock().table.clone()
    }

    /// Every node's memory as devices and loaders take it. Where an arena is, it shows the memory that the arena is in
    /// place of.
    pub fn device_view(&self) -> GuestRam {
        self.view.clone()
    }

    /// A control area in the nodes' memory, which the guest cannot give back from now on: the host would touch what is no
    /// longer there. `None` if `range` does not lie in one piece of it.
    ///
    /// # Errors
    /// The kernel gives no memory for it.
    pub fn control_area(&self, range: GpaRange) -> Option<Result<Area, VmError>> {
        let parts = self.host_parts(range)?;
        let &[(memory, hva)] = parts.as_slice() else { return None };
        self.spoken_for.lock().unwrap_or_else(PoisonError::into_inner).push(range);
        Some(Area::new(memory.clone(), hva.start()).map_err(VmError::from))
    }

    /// The host ranges of a range that the guest gives back. `None` also for memory that it must keep.
    pub fn to_give_back(&self, range: GpaRange) -> Option<Vec<(&Arc<Region>, HvaRange)>> {
        let spoken_for = self.spoken_for.lock().unwrap_or_else(PoisonError::into_inner);
        if spoken_for.iter().any(|kept| kept.overlaps(range)) {
            return None;
        }
        drop(spoken_for);
        self.host_parts(range)
    }

    /// Exchanges the memory at `spec.range` for a fresh arena, in place of an earlier one. No vCPU runs meanwhile. The
    /// arena is the guest's until the next exchange, also if the returned value is dropped before.
    ///
    /// # Errors
    /// [`VmError`]: the range is not memory of a movable node, or the arena cannot be made.
    pub fn lend_arena(&self, spec: ArenaSpec) -> Result<Arc<VmCore>, VmError> {
        let arena = Arc::new(Region::map(spec.range.len(), spec.backing)?);
        let slots = self.exchange(Some((&spec, &arena)))?;
        Ok(Arc::new(VmCore {
            vm: self.vm.clone(),
            slots,
            low: self.ram.clone(),
            arena,
            shared: self.shared().clone(),
            stats: self.stats.clone(),
            slot_zap_drops_all: self.slot_zap_drops_all,
            low_zapped: self.low_zapped.clone(),
        }))
    }

    /// Takes the arena out of the guest again: its memory is what it was before.
    ///
    /// # Errors
    /// [`VmError`]: the arena is still the guest's then, or no vCPU is let in any more.
    pub fn take_arena_back(&self) -> Result<(), VmError> {
        self.exchange(None).map(drop)
    }

    /// Where in the host a range of the nodes' memory is, node by node. `None` if a part of it is no such memory, or is
    /// lent to an arena.
    pub fn host_parts(&self, range: GpaRange) -> Option<Vec<(&Arc<Region>, HvaRange)>> {
        // Under an arena the guest's pages are elsewhere.
        if self.lent().is_some_and(|lent| lent.overlaps(range)) {
            return None;
        }
        let mut parts = Vec::new();
        let mut at = range.start();
        while at < range.end() {
            let index = self.nodes.iter().position(|node| node.range.contains(at))?;
            let (node, region) = (self.nodes[index].range, &self.ram[index]);
            let part = node.intersection(GpaRange::new(at, range.end())?)?;
            let hva = region.slice(part.start().checked_offset_from(node.start())?, part.len())?;
            parts.push((region, hva));
            at = part.end();
        }
        Some(parts)
    }

    fn lent(&self) -> MutexGuard<'_, Option<GpaRange>> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memslots for every node, with an arena in place of a part of one. A part's slots keep their numbers as long
    /// as the parts before it stay the same, and the arena comes last.
    fn table(&self, arena: Option<(&ArenaSpec, &Arc<Region>)>) -> Result<Arc<SlotTable>, VmError> {
        let mut builder = SlotTableBuilder::new(self.slot_limit);
        let hole = arena.as_ref().map(|(spec, _)| spec.range);
        for (node, region) in self.nodes.iter().zip(&*self.ram) {
            let cut = hole.and_then(|hole| node.range.intersection(hole));
            let parts = match cut {
                Some(cut) => vec![(node.range.start(), cut.start()), (cut.end(), node.range.end())],
                None => vec![(node.range.start(), node.range.end())],
            };
            for (start, end) in parts {
                let Some(part) = GpaRange::new(start, end).filter(|part| !part.is_empty()) else { continue };
                let offset = part.start().get() - node.range.start().get();
                let hva = region.slice(offset, part.len()).expect("a part of the node");
                builder.add_region(part.start(), hva, part.len().next_power_of_two())?;
            }
        }
        if let Some((spec, memory)) = arena {
            builder.add_region(spec.range.start(), memory.range(), spec.granule)?;
        }
        Ok(Arc::new(builder.build()?))
    }

    /// Makes the VM's memslots those of the nodes, with this arena in place of a part of one.
    fn exchange(&self, arena: Option<(&ArenaSpec, &Arc<Region>)>) -> Result<Arc<SlotTable>, VmError> {
        let table = self.table(arena)?;
        let behind = self.ram.iter().chain(arena.map(|(_, memory)| memory)).cloned().collect();
        let mut lent = self.lent();
        if self.slot_zap_drops_all {
            self.low_zapped.store(true, Ordering::Relaxed);
        }
        self.vm.exchange(table.clone(), behind)?;
        *lent = arena.map(|(spec, _)| spec.range);
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use guest_mem::{Gpa, Memslot};

    use super::*;
    use crate::testing::Refusing;
    use crate::{Accounting, KvmSlots, ZapMethod};
    use guest::CrashKind;
    use linux_boot::layout;

    const MIB: u64 = 1 << 20;

    /// 64 MiB of the kernel's own, and a node of 32 MiB.
    fn nodes() -> Vec<MemoryNode> {
        let mut nodes = layout::node0(64 * MIB).unwrap();
        nodes.push(layout::arena_node(&nodes, 32 * MIB, guest_mem::PMD_SIZE).unwrap());
        nodes
    }

    fn memory(kvm: &Kvm) -> PcMemory {
        PcMemory::new(kvm, 1, nodes(), Backing::Base4k, true).unwrap()
    }

    fn range(start: u64, len: u64) -> GpaRange {
        GpaRange::with_len(Gpa::new(start), len).unwrap()
    }

    #[test]
    #[ignore = "needs: Kvm"]
    fn an_arena_takes_the_place_of_a_part_of_its_node_and_goes_again() {
        let kvm = Kvm::open().unwrap();
        let memory = memory(&kvm);
        let node = memory.nodes()[1].range;
        let before = memory.slots();
        let wanted = range(node.start().get() + 4 * MIB, 16 * MIB);
        for granule in [2 * MIB, 4096, 16 * MIB] {
            let spec = ArenaSpec { range: wanted, backing: Backing::Base4k, granule };
            let core = memory.lend_arena(spec).unwrap();
            let slots = memory.slots();
            // Every address of the node has memory: the arena's inside of it, the node's own around it.
            for page in node.start().get() / 4096..node.end().get() / 4096 {
                let gpa = Gpa::new(page * 4096);
                let slot = slots.find_gpa(gpa).unwrap();
                let offset = gpa.get() - slot.gpa_range().start().get();
                let hva = slot.hva_range().start().checked_add(offset).unwrap();
                assert_eq!(core.arena().range().contains(hva), wanted.contains(gpa), "{gpa}");
            }
            let in_arena = |slot: &&Memslot| core.arena().range().covers(slot.hva_range());
            let lens: Vec<u64> = slots.as_slice().iter().filter(in_arena).map(Memslot::len).collect();
            assert_eq!((lens.len() as u64, lens[0]), (16 * MIB / granule, granule));
        }
        memory.take_arena_back().unwrap();
        assert_eq!(memory.slots().as_slice(), before.as_slice());
    }

    /// Where a slot's zap drops everything, a count of faults includes some of other memory.
    #[test]
    #[ignore = "needs: Kvm"]
    fn other_memory_is_zapped_when_slots_are_and_told_once() {
        let memory = memory(&Kvm::open().unwrap());
        assert!(memory.slot_zap_drops_all());
        assert_eq!(memory.ram().len(), memory.nodes().len());
        assert!(memory.take_low_zapped(), "nothing is mapped yet");
        assert!(!memory.take_low_zapped());
        let _core = memory.lend_arena(spec(&memory)).unwrap();
        assert!(memory.take_low_zapped());
        assert!(!memory.take_low_zapped());
    }

    #[test]
    #[ignore = "needs: SlotZap"]
    fn a_zap_is_of_its_slot_where_that_is_asked_for() {
        let kvm = Kvm::open().unwrap();
        assert!(!PcMemory::new(&kvm, 1, nodes(), Backing::Base4k, false).unwrap().slot_zap_drops_all());
    }

    #[test]
    #[ignore = "needs: Kvm"]
    fn pages_are_found_in_the_host_unless_they_are_lent() {
        let kvm = Kvm::open().unwrap();
        let memory = memory(&kvm);
        let node = memory.nodes()[1].range;
        let found = |range| memory.host_parts(range).map(|parts| parts.len());
        assert_eq!(found(range(0, 64 * MIB)), Some(1));
        assert_eq!(found(range(63 * MIB, 2 * MIB)), None, "it runs out of the node");
        assert_eq!(found(range(layout::VIRTIO_BASE.get(), 4096)), None);
        assert_eq!(found(node), Some(1));
        let lent = range(node.start().get() + 2 * MIB, 2 * MIB);
        let _core =
            memory.lend_arena(ArenaSpec { range: lent, backing: Backing::Base4k, granule: 2 * MIB }).unwrap();
        assert_eq!(found(node), None, "the arena lies in the middle");
        assert_eq!(found(range(node.start().get(), 2 * MIB)), Some(1));
        assert_eq!(found(lent), None);
    }

    /// Memory whose memslots can be refused.
    fn refusing(kvm: &Kvm) -> (PcMemory, Arc<Refusing<Arc<VmFd>>>) {
        let mut made = None;
        let slots = |file| made.insert(Arc::new(Refusing::new(file))).clone();
        let memory = PcMemory::with_slots(kvm, 1, nodes(), Backing::Base4k, true, slots).unwrap();
        (memory, made.unwrap())
    }

    /// An arena of eight slots in the middle of its node.
    fn spec(memory: &PcMemory) -> ArenaSpec {
        let start = memory.nodes()[1].range.start().get();
        ArenaSpec { range: range(start + 4 * MIB, 16 * MIB), backing: Backing::Base4k, granule: 2 * MIB }
    }

    /// Whichever call KVM refuses, the guest keeps what it had, and nothing that is mapped goes.
    #[test]
    #[ignore = "needs: Kvm"]
    fn a_refused_arena_leaves_the_guest_what_it_had() {
        let kvm = Kvm::open().unwrap();
        let (memory, slots) = refusing(&kvm);
        let (table, before) = (memory.slots(), slots.slots());
        let mut call = 0;
        loop {
            call += 1;
            slots.refuse(&[call]);
            let Err(error) = memory.lend_arena(spec(&memory)) else { break };
            assert!(matches!(error, VmError::Slot { .. }), "call {call}: {error}");
            assert_eq!((slots.slots(), slots.dangling()), (before.clone(), vec![]), "call {call}");
            assert!(Arc::ptr_eq(&memory.slots(), &table));
            // The memory is the nodes' own, and devices may use it.
            assert!(memory.host_parts(memory.nodes()[1].range).is_some());
        }
        // One slot goes, and what is left of it before and after the arena comes, with eight of the arena's.
        assert_eq!(call, 12);
        assert!(slots.dangling().is_empty());
        slots.refuse(&[]);
        memory.take_arena_back().unwrap();
        assert_eq!(slots.slots(), before);
    }

    /// KVM refuses the way back too: then every slot that may be there has its memory, and no vCPU is let in.
    #[test]
    #[ignore = "needs: Kvm"]
    fn a_guest_with_unknown_slots_does_not_run() {
        let kvm = Kvm::open().unwrap();
        for call in 2..=11 {
            let (memory, slots) = refusing(&kvm);
            slots.refuse_from(call);
            assert!(memory.lend_arena(spec(&memory)).is_err());
            assert!(slots.dangling().is_empty(), "call {call}");
            let gate = &memory.shared().gate;
            assert!(matches!(gate.shut(), Some(CrashKind::Memslots(_))), "call {call}");
            // Nothing is tried on it any more.
            slots.refuse(&[]);
            assert!(matches!(memory.take_arena_back(), Err(VmError::Broken(_))));
            assert_eq!((slots.calls(), slots.dangling()), (0, vec![]));
        }
    }

    /// A guest that gives a control area back, or a part of one, is refused: the host goes on using it.
    #[test]
    #[ignore = "needs: Kvm"]
    fn a_control_area_is_not_given_back() {
        let kvm = Kvm::open().unwrap();
        let memory = memory(&kvm);
        let at = range(8 * MIB, guest_abi::layout::AREA_SIZE);
        assert!(memory.to_give_back(at).is_some());
        memory.control_area(at).unwrap().unwrap();
        assert!(memory.to_give_back(range(8 * MIB + 4096, 4096)).is_none());
        assert!(memory.to_give_back(range(6 * MIB, 4 * MIB)).is_none());
        assert!(memory.to_give_back(range(6 * MIB, 2 * MIB)).is_some());
        // No area lies where there is no memory, or in two pieces of it.
        assert!(memory.control_area(range(63 * MIB, at.len())).is_none());
    }

    /// A loan dropped early keeps all memory that the guest can reach.
    #[test]
    #[ignore = "needs: Kvm"]
    fn an_arena_stays_until_its_slots_are_out() {
        let kvm = Kvm::open().unwrap();
        let (memory, slots) = refusing(&kvm);
        let core = memory.lend_arena(spec(&memory)).unwrap();
        let arena = Arc::downgrade(core.arena());
        drop(core);
        assert!(arena.upgrade().is_some());
        assert!(slots.dangling().is_empty());
        let other = Arc::downgrade(memory.lend_arena(spec(&memory)).unwrap().arena());
        assert!(arena.upgrade().is_none() && other.upgrade().is_some());
        memory.take_arena_back().unwrap();
        assert!(other.upgrade().is_none());
    }

    /// A listener that is left over from an arena changes nothing of the arenas after it.
    #[test]
    #[ignore = "needs: Kvm"]
    fn a_loan_that_was_taken_back_zaps_nothing() {
        let kvm = Kvm::open().unwrap();
        let (memory, slots) = refusing(&kvm);
        let core = memory.lend_arena(spec(&memory)).unwrap();
        let listener = KvmSlots::new(core.clone(), ZapMethod::Memslot, Accounting::Off);
        let page = core.arena().slice(0, 4096).unwrap();
        assert_eq!(listener.zap(page).slots, 1);
        memory.take_arena_back().unwrap();
        slots.refuse(&[]);
        assert_eq!(listener.zap(page).slots, 0);
        assert_eq!((slots.calls(), slots.dangling()), (0, vec![]));
    }

    /// The slot is deleted, and KVM does not take it again: no panic, and each entry into the guest ends with the
    /// reason.
    #[test]
    #[ignore = "needs: Kvm"]
    fn a_slot_that_is_not_taken_back_ends_its_guest() {
        let kvm = Kvm::open().unwrap();
        for call in [1, 2] {
            let (memory, slots) = refusing(&kvm);
            let core = memory.lend_arena(spec(&memory)).unwrap();
            let listener = KvmSlots::new(core.clone(), ZapMethod::Memslot, Accounting::Off);
            slots.refuse(&[call]);
            listener.zap(core.arena().slice(0, 4096).unwrap());
            let gate = &memory.shared().gate;
            assert!(matches!(gate.shut(), Some(CrashKind::Memslots(why)) if why.contains("memslot")));
            assert!(slots.dangling().is_empty());
            // It is not zapped again.
            assert_eq!(listener.zap(core.arena().slice(0, 4096).unwrap()).slots, 0);
        }
    }
}
