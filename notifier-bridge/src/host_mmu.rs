//! The host's own page tables as a primary MMU: a page is resolved by touching it.

use std::sync::atomic::{AtomicU8, Ordering};

use guest_mem::{Address, Hva, HvaRange, MapLevel, PAGE_SIZE};

use crate::primary::{Mapping, PrimaryMmu, ResolveError};

/// This process's own memory, seen through the page tables the kernel keeps for it.
///
/// The level at which a page is mapped is nothing a process can see by touching it; `probe` is asked for it.
pub struct HostMmu<L> {
    regions: Box<[HvaRange]>,
    probe: L,
}

impl<L: Fn(Hva) -> MapLevel + Send + Sync> HostMmu<L> {
    /// The memory in `regions`, with `probe` to tell at what level a page is mapped.
    ///
    /// # Safety
    /// For as long as the value lives every region stays mapped readable and writable, and is only ever
    /// accessed in ways that tolerate concurrent access (volatile or atomic, never through a reference).
    pub unsafe fn new(regions: impl IntoIterator<Item = HvaRange>, probe: L) -> Self {
        Self { regions: regions.into_iter().collect(), probe }
    }

    /// Makes the host map the page, for writing if `write`, and changes nothing in it.
    fn touch(&self, page: Hva, write: bool) -> Result<(), ResolveError> {
        let byte = HvaRange::with_len(page, 1).ok_or(ResolveError::Unmapped(page))?;
        if !self.regions.iter().any(|region| region.covers(byte)) {
            return Err(ResolveError::Unmapped(page));
        }
        if write {
            // SAFETY: the byte lies in a region, which by the promise made to `new` is mapped and shared
            // with accesses that tolerate this one; a byte needs no alignment.
            let byte = unsafe { AtomicU8::from_ptr(page.as_ptr()) };
            // A guest may write at the same time, so reading a value and writing it back would lose what it
            // wrote. A compare-exchange takes the page for writing even where it compares unequal, and
            // leaves the value as it is either way. (`fetch_or(0)` would not do: it compiles to a load.)
            let _ = byte.compare_exchange(0, 0, Ordering::Relaxed, Ordering::Relaxed);
        } else {
            // SAFETY: as above: mapped, and read as a guest's memory must be.
            unsafe { std::ptr::read_volatile(page.as_ptr::<u8>()) };
        }
        Ok(())
    }
}

impl<L: Fn(Hva) -> MapLevel + Send + Sync> PrimaryMmu for HostMmu<L> {
    type Frame = Hva;

    fn resolve(&self, hva: Hva, write: bool) -> Result<Mapping<Hva>, ResolveError> {
        let page = hva.align_down(PAGE_SIZE);
        self.touch(page, write)?;
        // A page that was only read may be the zero page, to be replaced at the first write.
        Ok(Mapping { frame: page, level: (self.probe)(page), writable: write })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> (Vec<AtomicU8>, HvaRange) {
        let bytes: Vec<AtomicU8> = (0..3 * PAGE_SIZE).map(|b| AtomicU8::new(b as u8)).collect();
        let range = HvaRange::with_len(Hva::of(bytes.as_ptr()), bytes.len() as u64).unwrap();
        let page = HvaRange::new(range.start().checked_align_up(PAGE_SIZE).unwrap(), range.end()).unwrap();
        (bytes, page)
    }

    fn mmu(range: HvaRange) -> HostMmu<impl Fn(Hva) -> MapLevel + Send + Sync> {
        // SAFETY: each test keeps the memory alive longer than the value made here, and the memory is atomics.
        unsafe { HostMmu::new([range], |_| MapLevel::Pte) }
    }

    #[test]
    fn a_page_is_found_where_it_is_and_stays_as_it_was() {
        let (bytes, range) = memory();
        let before: Vec<u8> = bytes.iter().map(|b| b.load(Ordering::Relaxed)).collect();
        let inside = range.start().checked_add(0x123).unwrap();
        for write in [false, true] {
            let mapping = mmu(range).resolve(inside, write).unwrap();
            assert_eq!(mapping, Mapping { frame: range.start(), level: MapLevel::Pte, writable: write });
        }
        assert!(bytes.iter().map(|b| b.load(Ordering::Relaxed)).eq(before));
    }

    #[test]
    fn memory_outside_the_regions_is_not_touched() {
        let (_bytes, range) = memory();
        let null = Hva::new(0);
        assert_eq!(mmu(range).resolve(null, true), Err(ResolveError::Unmapped(null)));
    }
}
