//! The shadow table: for each memslot an entry per 4 KiB, and an entry per 2 MiB where one may be used.
//!
//! ```text
//!   slot (gfns)      |···|─────────── 512 ──────────|─────────── 512 ──────────|····|
//!   pmd entries          [           0             ][            1            ]        aligned in gfn *and* hva,
//!   pte entries      [ ][ ][ ][ ][ ] …                                      … [ ][ ]   and whole inside the slot
//! ```
//!
//! Readers take no lock. Writers hold `mmu_lock`, so an entry is read, then stored, without a
//! read-modify-write.

use std::sync::atomic::{AtomicU64, Ordering};

use guest_mem::{
    Address, Gfn, GfnRange, HvaRange, Memslot, PAGE_SHIFT, PAGE_SIZE, PAGES_PER_PMD, PMD_SIZE, SlotTable,
};

use super::spte::Spte;

/// Dropped entries, by level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Dropped {
    pub(super) pte: u64,
    pub(super) pmd: u64,
}

impl Dropped {
    pub(super) fn is_nothing(self) -> bool {
        self.pte == 0 && self.pmd == 0
    }
    pub(super) fn bytes(self) -> u64 {
        self.pte * PAGE_SIZE + self.pmd * PMD_SIZE
    }
}

impl std::ops::AddAssign for Dropped {
    fn add_assign(&mut self, other: Self) {
        self.pte += other.pte;
        self.pmd += other.pmd;
    }
}

/// The place of a slot's entries.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// The slot's frames.
    gfns: GfnRange,
    /// Those of them that a PMD entry may map.
    large: GfnRange,
    first_pte: usize,
    first_pmd: usize,
}

#[derive(Debug)]
pub(super) struct ShadowTable {
    /// By slot number, which [`guest_mem::SlotTableBuilder`] gives out from 0 without gaps.
    places: Box<[Place]>,
    pte: Box<[AtomicU64]>,
    pmd: Box<[AtomicU64]>,
}

impl ShadowTable {
    pub(super) fn new(slots: &SlotTable) -> Self {
        let mut by_id: Vec<&Memslot> = slots.as_slice().iter().collect();
        by_id.sort_unstable_by_key(|slot| slot.id());
        let (mut ptes, mut pmds) = (0, 0);
        let mut places = Vec::with_capacity(by_id.len());
        for slot in by_id {
            let (gfns, large) = (slot.gpa_range().gfns(), large_gfns(slot));
            places.push(Place { gfns, large, first_pte: ptes, first_pmd: pmds });
            ptes += gfns.len() as usize;
            pmds += (large.len() / PAGES_PER_PMD) as usize;
        }
        let empty = |count| (0..count).map(|_| AtomicU64::new(Spte::NONE.bits())).collect();
        Self { places: places.into(), pte: empty(ptes), pmd: empty(pmds) }
    }

    /// The translation of one page, at whichever level it is. `gfn` lies in `slot`.
    pub(super) fn look_up(&self, slot: &Memslot, gfn: Gfn) -> Spte {
        let place = self.place(slot);
        if let Some(pmd) = self.pmd_entry(place, gfn) {
            let large = load(pmd);
            if large.is_present() {
                return large.page(gfn.get() % PAGES_PER_PMD);
            }
        }
        load(self.pte_entry(place, gfn))
    }

    /// The frames a PMD entry for `gfn` would map, if the slot allows one.
    pub(super) fn large_region(&self, slot: &Memslot, gfn: Gfn) -> Option<GfnRange> {
        let region = GfnRange::with_len(gfn.align_down(PAGES_PER_PMD), PAGES_PER_PMD)?;
        self.place(slot).large.covers(region).then_some(region)
    }

    /// Installs a 4 KiB entry. A PMD entry over it is dropped, or it would still be used.
    pub(super) fn install_pte(&self, slot: &Memslot, gfn: Gfn, spte: Spte) -> Dropped {
        let place = self.place(slot);
        let pmd = self.pmd_entry(place, gfn).is_some_and(clear);
        let entry = self.pte_entry(place, gfn);
        let pte = load(entry).is_present();
        store(entry, spte);
        Dropped { pte: pte.into(), pmd: pmd.into() }
    }

    /// Installs a 2 MiB entry for a region that [`ShadowTable::large_region`] gave, whose first frame `spte`
    /// names. The 4 KiB entries under it are dropped: they would be used again once it is gone.
    pub(super) fn install_pmd(&self, slot: &Memslot, region: GfnRange, spte: Spte) -> Dropped {
        let place = self.place(slot);
        let mut dropped = Dropped::default();
        if let Some(entry) = self.pmd_entry(place, region.start()) {
            dropped.pmd = load(entry).is_present().into();
            store(entry, spte);
        }
        dropped.pte = self.clear_ptes(place, region);
        dropped
    }

    /// Drops every entry that maps any of `gfns`, which lie in `slot`. A 2 MiB entry goes whole.
    pub(super) fn zap(&self, slot: &Memslot, gfns: GfnRange) -> Dropped {
        let place = self.place(slot);
        let mut pmd = 0;
        if let Some(large) =
            gfns.checked_align_outward(PAGES_PER_PMD).and_then(|g| g.intersection(place.large))
        {
            let entries =
                large.chunks(PAGES_PER_PMD).filter_map(|region| self.pmd_entry(place, region.start()));
            pmd = entries.map(|entry| u64::from(clear(entry))).sum();
        }
        Dropped { pte: self.clear_ptes(place, gfns), pmd }
    }

    /// The number of present entries.
    #[cfg(test)]
    pub(super) fn count(&self) -> Dropped {
        let present = |entries: &[AtomicU64]| entries.iter().filter(|e| load(e).is_present()).count() as u64;
        Dropped { pte: present(&self.pte), pmd: present(&self.pmd) }
    }

    fn clear_ptes(&self, place: &Place, gfns: GfnRange) -> u64 {
        let first = place.first_pte + (gfns.start().get() - place.gfns.start().get()) as usize;
        let entries = &self.pte[first..first + gfns.len() as usize];
        entries.iter().map(|entry| u64::from(clear(entry))).sum()
    }

    fn place(&self, slot: &Memslot) -> &Place {
        &self.places[slot.id().0 as usize]
    }
    fn pte_entry(&self, place: &Place, gfn: Gfn) -> &AtomicU64 {
        &self.pte[place.first_pte + (gfn.get() - place.gfns.start().get()) as usize]
    }
    fn pmd_entry(&self, place: &Place, gfn: Gfn) -> Option<&AtomicU64> {
        let index = gfn.checked_offset_from(place.large.start())? / PAGES_PER_PMD;
        place.large.contains(gfn).then(|| &self.pmd[place.first_pmd + index as usize])
    }
}

/// The frames of a slot that PMD entries may map: whole 2 MiB regions of guest frames inside it, if guest and
/// host addresses agree modulo 2 MiB (else no host PMD mapping lines up with a guest one). As
/// `disallow_lpage` in `kvm_alloc_memslot_metadata`.
fn large_gfns(slot: &Memslot) -> GfnRange {
    let (gpa, hva) = (slot.gpa_range(), slot.hva_range());
    let none = GfnRange::empty(gpa.gfns().start());
    if (gpa.start().get() ^ hva.start().get()) & (PMD_SIZE - 1) != 0 {
        return none;
    }
    let end = gpa.gfns().end().align_down(PAGES_PER_PMD);
    let start = gpa.gfns().start().checked_align_up(PAGES_PER_PMD);
    start.and_then(|start| GfnRange::new(start, end)).unwrap_or(none)
}

/// The frames of `slot` that any byte of `range` touches: `{gfn(page) | page intersects with [start, end)}`,
/// as `__kvm_handle_hva_range` computes it. `range` overlaps the slot.
pub(super) fn gfns_of(slot: &Memslot, range: HvaRange) -> GfnRange {
    let hva = slot.hva_range();
    let shared = hva.intersection(range).unwrap_or(HvaRange::empty(hva.start()));
    let first = (shared.start().get() - hva.start().get()) >> PAGE_SHIFT;
    let base = slot.gpa_range().gfns().start();
    let start = Gfn::new(base.get() + first);
    GfnRange::with_len(start, shared.page_count()).unwrap_or(GfnRange::empty(base))
}

fn load(entry: &AtomicU64) -> Spte {
    Spte::from_bits(entry.load(Ordering::Acquire))
}

fn store(entry: &AtomicU64, spte: Spte) {
    entry.store(spte.bits(), Ordering::Release);
}

/// Clears an entry. Whether there was one.
fn clear(entry: &AtomicU64) -> bool {
    let present = Spte::from_bits(entry.load(Ordering::Relaxed)).is_present();
    if present {
        store(entry, Spte::NONE);
    }
    present
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doubles::{range, slots};

    const MIB: u64 = 1 << 20;

    fn large(gpa: u64, hva: u64, len: u64) -> Option<(u64, u64)> {
        let slots = slots(&[(gpa, hva, len, 1 << 30)]);
        let large = large_gfns(&slots.as_slice()[0]);
        (!large.is_empty()).then(|| (large.start().get(), large.end().get()))
    }

    #[test]
    fn a_large_entry_needs_both_alignments_and_the_whole_region() {
        assert_eq!(large(4 * MIB, 8 * MIB, 4 * MIB), Some((1024, 2048)));
        assert_eq!(large(4 * MIB, 9 * MIB, 4 * MIB), None, "guest and host disagree modulo 2 MiB");
        assert_eq!(large(5 * MIB, 9 * MIB, 4 * MIB), Some((1536, 2048)), "one whole region in the middle");
        assert_eq!(large(5 * MIB, 9 * MIB, 2 * MIB), None, "no whole region");
    }

    #[test]
    fn a_byte_of_a_page_is_the_page() {
        let slots = slots(&[(4 * MIB, 8 * MIB, MIB, MIB)]);
        let slot = &slots.as_slice()[0];
        let frames = |r| (gfns_of(slot, r).start().get(), gfns_of(slot, r).end().get());
        assert_eq!(frames(range(8 * MIB + 0x1fff, 2)), (1025, 1027));
        assert_eq!(frames(range(0, 64 * MIB)), (1024, 1280), "clipped to the slot");
    }

    #[test]
    fn zapping_a_page_takes_the_large_entry_over_it_and_no_other() {
        let slots = slots(&[(0, 0, 4 * MIB, 4 * MIB)]);
        let (table, slot) = (ShadowTable::new(&slots), slots.as_slice()[0]);
        for region in [0, 512] {
            let region = table.large_region(&slot, Gfn::new(region)).unwrap();
            table.install_pmd(&slot, region, Spte::new(1024 + region.start().get(), true));
        }
        assert_eq!(table.look_up(&slot, Gfn::new(513)).pfn(), 1537);
        let one = GfnRange::with_len(Gfn::new(700), 1).unwrap();
        assert_eq!(table.zap(&slot, one), Dropped { pte: 0, pmd: 1 });
        assert_eq!(table.zap(&slot, one), Dropped::default(), "once");
        assert!(!table.look_up(&slot, Gfn::new(513)).is_present());
        assert!(table.look_up(&slot, Gfn::new(0)).is_present());
    }

    #[test]
    fn the_two_levels_never_map_the_same_page() {
        let slots = slots(&[(0, 0, 4 * MIB, 4 * MIB)]);
        let (table, slot) = (ShadowTable::new(&slots), slots.as_slice()[0]);
        let (gfn, neighbour) = (Gfn::new(700), Gfn::new(701));
        let region = table.large_region(&slot, gfn).unwrap();
        table.install_pte(&slot, gfn, Spte::new(7, false));
        assert_eq!(table.install_pmd(&slot, region, Spte::new(1024, false)), Dropped { pte: 1, pmd: 0 });
        assert_eq!(table.count(), Dropped { pte: 0, pmd: 1 });
        assert_eq!(table.install_pte(&slot, gfn, Spte::new(9, true)), Dropped { pte: 0, pmd: 1 });
        assert_eq!(table.count(), Dropped { pte: 1, pmd: 0 });
        assert_eq!(table.look_up(&slot, gfn).pfn(), 9);
        assert!(!table.look_up(&slot, neighbour).is_present());
    }
}
