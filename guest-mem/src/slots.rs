//! Memslots as plain data: which guest frames are backed by which host addresses.
//!
//! A memslot is the unit in which KVM lets user space drop translations, so its size is the precision of
//! a zap. This module only describes and finds slots; `machine` issues the ioctls.

use crate::address::{Address, Gpa, Hva, PAGE_SIZE};
use crate::range::{GpaRange, HvaRange};

/// A slot's number, as in `kvm_userspace_memory_region::slot`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u32);

/// One memslot: `len` bytes of guest physical memory at `gpa`, backed by host memory at `hva`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memslot {
    id: SlotId,
    gpa: Gpa,
    hva: Hva,
    len: u64,
}

impl Memslot {
    /// The slot's number.
    pub fn id(&self) -> SlotId {
        self.id
    }
    /// The guest physical range.
    pub fn gpa_range(&self) -> GpaRange {
        GpaRange::with_len(self.gpa, self.len).expect("checked when the slot was made")
    }
    /// Whether `gpa` lies in it.
    pub fn contains(&self, gpa: Gpa) -> bool {
        gpa.get().wrapping_sub(self.gpa.get()) < self.len
    }
    /// The host virtual range.
    pub fn hva_range(&self) -> HvaRange {
        HvaRange::with_len(self.hva, self.len).expect("checked when the slot was made")
    }
    /// Bytes covered.
    pub fn len(&self) -> u64 {
        self.len
    }
    /// Never true: an empty slot cannot be made. Here because [`Memslot::len`] is.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A layout of memslots that is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum SlotError {
    #[error("slot granule of {0} bytes: it must be a power of two and at least 4096")]
    Granule(u64),
    #[error(
        "slots over {len} bytes at gpa {gpa}, hva {hva}: all three must be multiples of 4096, the length not 0"
    )]
    Unaligned { gpa: Gpa, hva: Hva, len: u64 },
    #[error("slots over {len} bytes at gpa {gpa}, hva {hva} run past the end of the address space")]
    Wraps { gpa: Gpa, hva: Hva, len: u64 },
    #[error("the slots at gpa {0} and gpa {1} overlap, in guest physical or in host virtual addresses")]
    Overlap(Gpa, Gpa),
    /// `limit` is the host's `KVM_CAP_NR_MEMSLOTS`.
    #[error("{wanted} slots, but the host offers {limit}: choose a larger granule or less memory")]
    TooMany { wanted: u64, limit: u64 },
}

/// Slots that KVM offers on x86-64, and with it the software MMU.
pub const MOST_SLOTS: u64 = 32_764;

/// Collects the slots of a VM, region by region. [`SlotTableBuilder::build`] makes it searchable.
#[derive(Debug)]
pub struct SlotTableBuilder {
    slots: Vec<Memslot>,
    limit: u64,
}

impl SlotTableBuilder {
    /// Begins an empty table for a host that offers `limit` slots.
    pub fn new(limit: u64) -> Self {
        Self { slots: Vec::new(), limit }
    }

    /// Covers `hva` by slots of `granule` bytes from `gpa` on; the last may be shorter. Numbers continue
    /// from the region before. Returns the numbers taken.
    ///
    /// # Errors
    /// A granule that is no power of two of pages, addresses off the page grid, ranges that wrap, or more
    /// slots than the host has.
    pub fn add_region(
        &mut self,
        gpa: Gpa,
        hva: HvaRange,
        granule: u64,
    ) -> Result<std::ops::Range<u32>, SlotError> {
        if !granule.is_power_of_two() || granule < PAGE_SIZE {
            return Err(SlotError::Granule(granule));
        }
        let (start, len) = (hva.start(), hva.len());
        let aligned = gpa.is_aligned(PAGE_SIZE) && start.is_aligned(PAGE_SIZE) && len % PAGE_SIZE == 0;
        if !aligned || len == 0 {
            return Err(SlotError::Unaligned { gpa, hva: start, len });
        }
        if GpaRange::with_len(gpa, len).is_none() {
            return Err(SlotError::Wraps { gpa, hva: start, len });
        }
        let first = self.slots.len() as u64;
        let wanted = first + len.div_ceil(granule);
        if wanted > self.limit.min(u64::from(u32::MAX)) {
            return Err(SlotError::TooMany { wanted, limit: self.limit });
        }
        self.slots.reserve_exact((wanted - first) as usize);
        for (index, piece) in hva.chunks(granule).enumerate() {
            let id = SlotId((first + index as u64) as u32);
            let gpa = Gpa::new(gpa.get() + index as u64 * granule);
            self.slots.push(Memslot { id, gpa, hva: piece.start(), len: piece.len() });
        }
        Ok(first as u32..wanted as u32)
    }

    /// Sorts the slots for look-up.
    pub fn build(self) -> Result<SlotTable, SlotError> {
        let mut by_hva = self.slots;
        by_hva.sort_unstable_by_key(|slot| slot.hva);
        for pair in by_hva.windows(2) {
            if pair[0].hva_range().overlaps(pair[1].hva_range()) {
                return Err(SlotError::Overlap(pair[0].gpa, pair[1].gpa));
            }
        }
        let mut by_gpa: Vec<u32> = (0..by_hva.len() as u32).collect();
        by_gpa.sort_unstable_by_key(|&index| by_hva[index as usize].gpa);
        for pair in by_gpa.windows(2) {
            let (a, b) = (by_hva[pair[0] as usize], by_hva[pair[1] as usize]);
            if a.gpa_range().overlaps(b.gpa_range()) {
                return Err(SlotError::Overlap(a.gpa, b.gpa));
            }
        }
        let gpas = by_gpa.iter().map(|&index| by_hva[index as usize].gpa).collect();
        let hvas = by_hva.iter().map(|slot| slot.hva).collect();
        let runs = host_runs(&by_hva);
        Ok(SlotTable { by_hva: by_hva.into(), hvas, by_gpa: by_gpa.into(), gpas, runs })
    }
}

/// Merges slots, in order of host address, that follow one another without a gap.
fn host_runs(by_hva: &[Memslot]) -> Box<[HvaRange]> {
    let joins = |low: &Memslot, high: &Memslot| low.hva_range().end() == high.hva;
    let run = |slots: &[Memslot]| Some(slots.first()?.hva_range().hull(slots.last()?.hva_range()));
    by_hva.chunk_by(joins).filter_map(run).collect()
}

/// The memslots of a VM, found by host or by guest address in O(log n).
///
/// Slots never change size or place after the VM is built: a zap takes one away and puts the same one back. The default is
/// a VM without memory.
#[derive(Debug, Default)]
pub struct SlotTable {
    by_hva: Box<[Memslot]>,
    /// The start of each of `by_hva`, in an array of its own: a search in it stays in the cache.
    hvas: Box<[Hva]>,
    /// Indices into `by_hva`, in order of guest address.
    by_gpa: Box<[u32]>,
    /// The start of each of `by_gpa`, likewise.
    gpas: Box<[Gpa]>,
    /// Host ranges that slots cover without a gap.
    runs: Box<[HvaRange]>,
}

impl SlotTable {
    /// All slots, in order of host address.
    pub fn as_slice(&self) -> &[Memslot] {
        &self.by_hva
    }
    /// The host ranges that slots cover without a gap, lowest first: as few as possible.
    pub fn runs(&self) -> &[HvaRange] {
        &self.runs
    }
    /// The slots that share at least one byte with `range`, in order of host address.
    pub fn covering(&self, range: HvaRange) -> &[Memslot] {
        if range.is_empty() {
            return &[];
        }
        let after = self.hvas.partition_point(|&start| start <= range.start());
        // The slot that begins at or before the range, if it reaches into it; else the next.
        let reaches = |index: &usize| self.by_hva[*index].hva_range().contains(range.start());
        let first = after.checked_sub(1).filter(reaches).unwrap_or(after);
        let rest = &self.by_hva[first..];
        // Most ranges end in the slot they begin in or just after it: walk before searching again.
        let near = rest.iter().take(4).take_while(|slot| slot.hva < range.end()).count();
        if near < 4 {
            return &rest[..near];
        }
        &rest[..near + rest[near..].partition_point(|slot| slot.hva < range.end())]
    }
    /// The slot that holds a guest physical address.
    pub fn find_gpa(&self, gpa: Gpa) -> Option<&Memslot> {
        let after = self.gpas.partition_point(|&start| start <= gpa);
        let slot = &self.by_hva[self.by_gpa[after.checked_sub(1)?] as usize];
        slot.contains(gpa).then_some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(regions: &[(u64, u64, u64, u64)]) -> Result<SlotTable, SlotError> {
        let mut builder = SlotTableBuilder::new(32_764);
        for &(gpa, hva, len, granule) in regions {
            builder.add_region(Gpa::new(gpa), HvaRange::with_len(Hva::new(hva), len).unwrap(), granule)?;
        }
        builder.build()
    }

    proptest! {
        #[test]
        fn look_ups_agree_with_a_linear_search(
            low in 1u64..40, high in 1u64..40, granule in 0u32..5, at in 0u64..120, pages in 0u64..60,
        ) {
            // Guest order and host order differ: the region lower in the guest is higher in the host.
            let g = PAGE_SIZE << granule;
            let slots = table(&[
                (0, 64 * PAGE_SIZE, low * PAGE_SIZE, g),
                (48 * PAGE_SIZE, 8 * PAGE_SIZE, high * PAGE_SIZE, g),
            ]).unwrap();
            let range = HvaRange::with_len(Hva::new(at * PAGE_SIZE), pages * PAGE_SIZE).unwrap();
            let naive: Vec<_> = slots.as_slice().iter().filter(|s| s.hva_range().overlaps(range)).copied().collect();
            prop_assert_eq!(slots.covering(range), &naive[..]);
            let gpa = Gpa::new(at * PAGE_SIZE + 5);
            let naive = slots.as_slice().iter().find(|s| s.gpa_range().contains(gpa));
            prop_assert_eq!(slots.find_gpa(gpa), naive);
            // A page is in a run exactly if it is in a slot, and no two runs touch.
            let page = HvaRange::with_len(Hva::new(at * PAGE_SIZE), PAGE_SIZE).unwrap();
            let in_slot = slots.as_slice().iter().any(|s| s.hva_range().covers(page));
            prop_assert_eq!(slots.runs().iter().any(|run| run.covers(page)), in_slot);
            prop_assert!(slots.runs().windows(2).all(|pair| pair[0].end() < pair[1].start()));
        }
    }

    #[test]
    fn a_full_table_finds_every_slot_both_ways() {
        let slots = table(&[(0, 1 << 40, 32_000 << 21, 2 << 20)]).unwrap();
        for (index, slot) in slots.as_slice().iter().enumerate() {
            assert_eq!(slots.covering(slot.hva_range()), std::slice::from_ref(slot));
            assert_eq!(slots.find_gpa(Gpa::new((index as u64) << 21 | 0x1f_ffff)), Some(slot));
        }
        assert_eq!(slots.find_gpa(Gpa::new(32_000 << 21)), None);
    }

    #[test]
    fn a_region_that_is_no_multiple_of_the_granule_ends_in_a_short_slot() {
        let slots = table(&[(0, 0x10000, 5 * PAGE_SIZE, 4 * PAGE_SIZE)]).unwrap();
        let lengths: Vec<u64> = slots.as_slice().iter().map(Memslot::len).collect();
        assert_eq!(lengths, [4 * PAGE_SIZE, PAGE_SIZE]);
    }

    #[test]
    fn impossible_layouts_are_refused_by_name() {
        assert_eq!(table(&[(0, 0, PAGE_SIZE, 3)]).unwrap_err(), SlotError::Granule(3));
        assert_eq!(table(&[(0, 0, PAGE_SIZE, 0)]).unwrap_err(), SlotError::Granule(0));
        assert!(matches!(table(&[(0, 0, 0, PAGE_SIZE)]), Err(SlotError::Unaligned { .. })));
        assert!(matches!(table(&[(1, 0, PAGE_SIZE, PAGE_SIZE)]), Err(SlotError::Unaligned { .. })));
        assert!(matches!(
            table(&[(u64::MAX - 4095, 0, 2 * PAGE_SIZE, PAGE_SIZE)]),
            Err(SlotError::Wraps { .. })
        ));
        assert!(matches!(
            table(&[(0, 0, 32_765 * PAGE_SIZE, PAGE_SIZE)]),
            Err(SlotError::TooMany { wanted: 32_765, limit: 32_764 })
        ));
        assert!(matches!(
            table(&[(0, 0, PAGE_SIZE, PAGE_SIZE), (0, 0x10000, PAGE_SIZE, PAGE_SIZE)]),
            Err(SlotError::Overlap(..))
        ));
    }
}
