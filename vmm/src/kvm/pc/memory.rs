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

use crate::kvm::Kvm;
use guest_mem::{Address, Backing, Gpa, GpaRange, HvaRange, Memslot, Region, SlotTable, SlotTableBuilder};
use kvm_ioctls::VmFd;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::kvm::stats::VmStats;
use crate::kvm::vcpu::Surroundings;
use crate::kvm::vm::{self, VmCore, VmError};
use crate::linux::layout::MemoryNode;

/// A VM with the memory of a PC, and without vCPUs.
#[derive(Debug)]
pub struct PcMemory {
    // Before the memory: the VM's file closes first, unless an arena on loan holds it too.
    vm: Arc<VmFd>,
    nodes: Vec<MemoryNode>,
    /// One region for each node.
    ram: Arc<[Region]>,
    surroundings: Arc<Surroundings>,
    stats: Arc<VmStats>,
    slot_zap_drops_all: bool,
    /// Whether translations of other memory than an arena's have been dropped since this was last asked.
    low_zapped: Arc<AtomicBool>,
    slot_limit: u64,
    layout: Mutex<Layout>,
}

/// The memslots as they are, and what they leave out of the nodes' memory.
#[derive(Debug)]
struct Layout {
    slots: Arc<SlotTable>,
    lent: Option<GpaRange>,
}

/// Where an arena goes, and what it is made of.
#[derive(Clone, Copy, Debug)]
pub struct ArenaSpec {
    /// Guest physical addresses: 2 MiB aligned, within one movable node.
    pub range: GpaRange,
    /// What fills it.
    pub backing: Backing,
    /// Bytes of a memslot.
    pub granule: u64,
}

impl PcMemory {
    /// Maps every node's memory and gives it to a new VM.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn new(
        kvm: &Kvm,
        vcpus: u32,
        nodes: Vec<MemoryNode>,
        backing: Backing,
        keep_quirk: bool,
    ) -> Result<Self, VmError> {
        let (vm, slot_zap_drops_all) = vm::create(kvm, keep_quirk)?;
        let ram = nodes
            .iter()
            .map(|node| Ok(Region::map(node.range.len(), backing)?.with_label(format!("node {}", node.node))))
            .collect::<Result<Arc<[_]>, VmError>>()?;
        let surroundings = Arc::new(Surroundings::new(vcpus, nodes.iter().map(|node| node.range).collect()));
        let stats = Arc::new(VmStats::of(&vm));
        let slot_limit = kvm.get_nr_memslots() as u64;
        let layout = Layout { slots: Arc::new(SlotTableBuilder::new(slot_limit).build()?), lent: None };
        let memory = Self {
            vm: Arc::new(vm),
            nodes,
            ram,
            surroundings,
            stats,
            slot_zap_drops_all,
            low_zapped: Arc::new(AtomicBool::new(true)),
            slot_limit,
            layout: Mutex::new(layout),
        };
        memory.exchange(memory.table(None)?, None)?;
        Ok(memory)
    }

    /// KVM's handle of the VM.
    pub fn vm(&self) -> &VmFd {
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
    pub fn surroundings(&self) -> &Arc<Surroundings> {
        &self.surroundings
    }
    /// The memory of every node, in the order of [`PcMemory::nodes`]; under an arena it is not the guest's.
    pub fn ram(&self) -> &Arc<[Region]> {
        &self.ram
    }
    /// The memslots as they are now.
    pub fn slots(&self) -> Arc<SlotTable> {
        self.lock().slots.clone()
    }

    /// Every node's memory as devices and loaders take it. Where an arena is, it shows the memory that the arena is in
    /// place of.
    pub fn device_view(&self) -> GuestMemoryMmap {
        let nodes = self.nodes.iter().zip(&*self.ram);
        let regions = nodes.map(|(node, region)| view(node.range.start(), region)).collect();
        GuestMemoryMmap::from_regions(regions).expect("nodes are laid out in order and apart")
    }

    /// Exchanges the memory at `spec.range` for a fresh arena, in place of an earlier one. No vCPU runs meanwhile.
    ///
    /// # Errors
    /// [`VmError`]: the range is not memory of a movable node, or the arena cannot be made.
    pub fn lend_arena(&self, spec: ArenaSpec) -> Result<Arc<VmCore>, VmError> {
        let arena = Region::map(spec.range.len(), spec.backing)?.with_label("arena");
        let slots = self.table(Some((&spec, arena.range())))?;
        let slots = self.exchange(slots, Some(spec.range))?;
        Ok(Arc::new(VmCore::from_parts(vm::Parts {
            vm: self.vm.clone(),
            slots,
            low: self.ram.clone(),
            arena,
            surroundings: self.surroundings.clone(),
            stats: self.stats.clone(),
            slot_zap_drops_all: self.slot_zap_drops_all,
            low_zapped: self.low_zapped.clone(),
        })))
    }

    /// Takes the arena out of the guest again: its memory is what it was before.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn take_arena_back(&self) -> Result<(), VmError> {
        self.exchange(self.table(None)?, None).map(drop)
    }

    /// Where in the host a range of the nodes' memory is, node by node. `None` if a part of it is no such memory, or is
    /// lent to an arena.
    pub fn host_parts(&self, range: GpaRange) -> Option<Vec<(&Region, HvaRange)>> {
        // Under an arena the guest's pages are elsewhere.
        if self.lock().lent.is_some_and(|lent| lent.overlaps(range)) {
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

    fn lock(&self) -> MutexGuard<'_, Layout> {
        self.layout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memslots for every node, with an arena in place of a part of one. A part's slots keep their numbers as long
    /// as what comes before it stays the same, and the arena comes last.
    fn table(&self, arena: Option<(&ArenaSpec, HvaRange)>) -> Result<Arc<SlotTable>, VmError> {
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
        if let Some((spec, hva)) = arena {
            builder.add_region(spec.range.start(), hva, spec.granule)?;
        }
        Ok(Arc::new(builder.build()?))
    }

    /// Makes the VM's memslots those of `new`: what is the same stays.
    fn exchange(&self, new: Arc<SlotTable>, lent: Option<GpaRange>) -> Result<Arc<SlotTable>, VmError> {
        let mut layout = self.lock();
        let current = &layout.slots;
        let stays = |slot: &Memslot, other: &SlotTable| {
            other.find_gpa(slot.gpa_range().start()).is_some_and(|same| same == slot)
        };
        let _hold = self.surroundings.gate.hold();
        if self.slot_zap_drops_all {
            self.low_zapped.store(true, Ordering::Relaxed);
        }
        for slot in current.as_slice().iter().filter(|slot| !stays(slot, &new)) {
            // SAFETY: deleting a slot ends the guest's use of its memory.
            unsafe { vm::set_slot(&self.vm, slot, 0) }?;
        }
        for slot in new.as_slice().iter().filter(|slot| !stays(slot, current)) {
            // SAFETY: node memory lives as long as `self`, whose owner ends the vCPUs first. An arena's memory belongs
            // to the `VmCore` that is made for it; the machine exchanges its slots before it lets go of that.
            unsafe { vm::set_slot(&self.vm, slot, slot.len()) }?;
        }
        *layout = Layout { slots: new.clone(), lent };
        Ok(new)
    }
}

fn view(at: Gpa, region: &Region) -> GuestRegionMmap {
    let range = region.range();
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: the region is such a mapping; whoever uses the view (loader, devices) is gone before `PcMemory` is.
    let mapping: MmapRegion =
        unsafe { MmapRegion::build_raw(range.start().as_ptr(), range.len() as usize, protection, flags) }
            .expect("page aligned, with the flags it was mapped with");
    GuestRegionMmap::new(mapping, GuestAddress(at.get())).expect("a memory map does not wrap")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::layout;

    const MIB: u64 = 1 << 20;

    /// 64 MiB of the kernel's own, and a node of 32 MiB.
    fn memory(kvm: &Kvm) -> PcMemory {
        let mut nodes = layout::node0(64 * MIB).unwrap();
        nodes.push(layout::arena_node(&nodes, 32 * MIB, guest_mem::PMD_SIZE).unwrap());
        PcMemory::new(kvm, 1, nodes, Backing::Base4k, true).unwrap()
    }

    fn range(start: u64, len: u64) -> GpaRange {
        GpaRange::with_len(Gpa::new(start), len).unwrap()
    }

    #[test]
    fn an_arena_takes_the_place_of_a_part_of_its_node_and_goes_again() {
        let Ok(kvm) = Kvm::open() else {
            eprintln!(
                "SKIPPED: an_arena_takes_the_place_of_a_part_of_its_node_and_goes_again: no KVM for us"
            );
            return;
        };
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
                let hva = slots.hva_of(gpa).unwrap();
                assert_eq!(core.arena().range().contains(hva), wanted.contains(gpa), "{gpa}");
            }
            let in_arena = |slot: &&Memslot| core.arena().range().covers(slot.hva_range());
            let lens: Vec<u64> = slots.as_slice().iter().filter(in_arena).map(Memslot::len).collect();
            assert_eq!((lens.len() as u64, lens[0]), (16 * MIB / granule, granule));
        }
        memory.take_arena_back().unwrap();
        assert_eq!(memory.slots().as_slice(), before.as_slice());
    }

    #[test]
    fn pages_are_found_in_the_host_unless_they_are_lent() {
        let Ok(kvm) = Kvm::open() else {
            eprintln!("SKIPPED: pages_are_found_in_the_host_unless_they_are_lent: no KVM for us");
            return;
        };
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
}
