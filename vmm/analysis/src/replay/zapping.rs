//! The translations that a listener drops for a range: the arithmetic of `machine::KvmSlots` and of
//! [`notifier_bridge::SoftMmu`], without a VM.

use std::ops::Range;

use guest_mem::{Address, Hva, HvaRange, PAGE_SIZE, PMD_SIZE, SlotTable};

use super::machine::Machine;
use super::sptes::{BLOCK, Bits};
use experiment::choice::Zap;
use experiment::events::{Leaves, SecondaryMmu, Setting};
use experiment::record::saturating_sum;

/// A listener and its way to zap.
#[derive(Clone, Debug)]
pub struct Zapping {
    /// By which means: [`Zap::Nothing`] where only the kernel zaps, `None` for the software MMU.
    how: Option<Zap>,
    drops_all: bool,
    arena: HvaRange,
    /// Blocks in which a toggle is exact.
    seams: Bits,
    /// Bytes of all slots.
    all_bytes: u64,
}

/// The effect of a zap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Zapped {
    /// Memslots.
    pub slots: u64,
    /// Bytes dropped, as the listener counts them.
    pub bytes: u64,
    /// Entries of the arena.
    pub dropped: Leaves,
    /// Whether the guest's own memory, beside the arena, lost its entries too.
    pub low: bool,
}

impl std::ops::AddAssign for Zapped {
    fn add_assign(&mut self, other: Self) {
        self.slots = self.slots.saturating_add(other.slots);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.dropped += other.dropped;
        self.low |= other.low;
    }
}

impl Zapping {
    /// The listener of a row over `slots`.
    pub fn new(setting: &Setting, arena: HvaRange, slots: &SlotTable) -> Self {
        let blocks = arena.len() / PMD_SIZE;
        let mut seams = Bits::none(blocks);
        seams.set_range(0..blocks, setting.seamed);
        let all_bytes = saturating_sum(slots.as_slice().iter().map(|slot| slot.len()));
        let how = (setting.mmu != SecondaryMmu::Soft).then_some(setting.label.tried.zap);
        Self { how, drops_all: setting.slot_zap_drops_all, arena, seams, all_bytes }
    }

    /// The arena's pages in a range.
    pub fn pages(&self, range: HvaRange) -> Range<u64> {
        match range.intersection(self.arena) {
            Some(part) => {
                let offset = |at: Hva| at.get() - self.arena.start().get();
                offset(part.start()) / PAGE_SIZE..offset(part.end()).div_ceil(PAGE_SIZE)
            }
            None => 0..0,
        }
    }

    /// The listener is told `range`, after [`Zapping::seam`] where it makes one.
    pub fn zap(&self, machine: &mut Machine, slots: &SlotTable, range: HvaRange) -> Zapped {
        match self.how {
            None => self.zap_entries(machine, slots, range),
            Some(Zap::Nothing) => Zapped::default(),
            Some(Zap::Memslot) => self.zap_slots(machine, slots, range),
            Some(Zap::Protect | Zap::Unmap) => self.toggle(machine, range),
        }
    }

    fn zap_slots(&self, machine: &mut Machine, slots: &SlotTable, range: HvaRange) -> Zapped {
        let covered = slots.covering(range);
        let (Some(first), Some(last)) = (covered.first(), covered.last()) else { return Zapped::default() };
        let hull = first.hva_range().hull(last.hva_range());
        if self.drops_all {
            let dropped = machine.zap(self.pages(self.arena));
            return Zapped { slots: covered.len() as u64, bytes: self.all_bytes, dropped, low: true };
        }
        // Slots of one run stand side by side, and their sum is their hull.
        let bytes = match slots.runs().iter().any(|run| run.covers(hull)) {
            true => hull.len(),
            false => saturating_sum(covered.iter().map(|slot| slot.len())),
        };
        let low = !self.arena.covers(hull);
        Zapped { slots: covered.len() as u64, bytes, dropped: machine.zap(self.pages(hull)), low }
    }

    /// The blocks that `range` begins or ends inside of and that have no seam.
    fn unseamed(&self, range: HvaRange) -> [Option<u64>; 2] {
        let part = range.intersection(self.arena).unwrap_or(HvaRange::empty(self.arena.start()));
        let block_of = |at: Hva| (at.get() - self.arena.start().get()) / PMD_SIZE;
        let inside = |at: Hva| (!part.is_empty() && !at.is_aligned(PMD_SIZE)).then(|| block_of(at));
        let unseamed = |block: Option<u64>| block.filter(|&block| !self.seams.has(block));
        [inside(part.start()), inside(part.end())].map(unseamed)
    }

    /// Whether a zap stops the vCPUs.
    pub fn stops_vcpus(&self) -> bool {
        self.how == Some(Zap::Memslot)
    }

    /// Whether a zap is a protection toggle.
    pub fn toggles(&self) -> bool {
        self.how == Some(Zap::Protect)
    }

    /// Whether the zap of `range` puts a seam somewhere first.
    pub fn makes_seam(&self, range: HvaRange) -> bool {
        let cuts = matches!(self.how, Some(Zap::Protect | Zap::Unmap));
        cuts && self.unseamed(range).iter().any(Option::is_some)
    }

    /// The blocks that get their seam by the zap of `range`: each is announced whole, and a huge page there comes apart.
    pub fn seam(&mut self, machine: &mut Machine, range: HvaRange) -> Zapped {
        let mut zapped = Zapped::default();
        for block in self.unseamed(range).into_iter().flatten() {
            if self.seams.has(block) {
                continue;
            }
            self.seams.set(block, true);
            let start = Hva::new(self.arena.start().get() + block * PMD_SIZE);
            let whole = HvaRange::with_len(start, PMD_SIZE).unwrap_or(HvaRange::empty(start));
            let beside = whole.len() - whole.intersection(range).map_or(0, HvaRange::len);
            zapped.bytes = zapped.bytes.saturating_add(beside);
            zapped.dropped += machine.split(block);
        }
        zapped
    }

    /// A toggle, whose seams are in place.
    fn toggle(&self, machine: &mut Machine, range: HvaRange) -> Zapped {
        let Some(part) = range.intersection(self.arena) else { return Zapped::default() };
        Zapped { bytes: part.len(), dropped: machine.zap(self.pages(part)), ..Zapped::default() }
    }

    /// The software MMU counts what it finds.
    fn zap_entries(&self, machine: &mut Machine, slots: &SlotTable, range: HvaRange) -> Zapped {
        let mut zapped = Zapped::default();
        for slot in slots.covering(range) {
            let part = slot.hva_range().intersection(range).unwrap_or(HvaRange::empty(range.start()));
            let dropped = machine.zap(self.pages(part));
            zapped.slots += u64::from(dropped != Leaves::default());
            zapped.bytes = zapped.bytes.saturating_add(dropped.bytes());
            zapped.dropped += dropped;
        }
        zapped
    }
}

/// The pieces of a system call over `pages` where each block has a VMA boundary behind its first page, or none has.
pub fn pieces(pages: Range<u64>, seamed: bool) -> impl Iterator<Item = Range<u64>> {
    let mut rest = pages;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let cut = match rest.start % BLOCK {
            _ if !seamed => rest.end,
            0 => rest.start + 1,
            _ => (rest.start / BLOCK + 1) * BLOCK,
        };
        let piece = rest.start..cut.min(rest.end);
        rest.start = piece.end;
        Some(piece)
    })
}
