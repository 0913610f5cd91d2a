//! The host's own page tables as a primary MMU: a page is resolved by touching it.

use guest_mem::{Address, Hva, HvaRange, MapLevel, Memory, PAGE_SIZE, RegionError};

use crate::primary::{Mapping, NotGiven, PrimaryMmu, ResolveError};

/// This process's own memory, seen through the page tables the kernel keeps for it. It keeps the memory mapped.
///
/// A process cannot see the level at which a page is mapped by touching it; `probe` returns it.
pub struct HostMmu<L> {
    regions: Box<[(HvaRange, Memory)]>,
    probe: L,
}

impl<L: Fn(Hva) -> MapLevel + Send + Sync> HostMmu<L> {
    /// The memory in `regions`, with `probe` to tell at what level a page is mapped.
    pub fn new(regions: impl IntoIterator<Item = Memory>, probe: L) -> Self {
        let placed = |memory: Memory| ((*memory).as_ref().range(), memory);
        Self { regions: regions.into_iter().map(placed).collect(), probe }
    }

    /// Makes the host map the page, for writing if `write`, and leaves its content.
    fn touch(&self, page: Hva, write: bool) -> Result<(), ResolveError> {
        let region = self.regions.iter().find(|(range, _)| range.contains(page));
        let (_, memory) = region.ok_or(ResolveError::Unmapped(page))?;
        (**memory).as_ref().touch(page, write).map_err(|error| untouched(page, error))
    }
}

/// The error of a page of a region that could not be touched.
fn untouched(page: Hva, error: RegionError) -> ResolveError {
    match error {
        RegionError::NotGiven { limit, .. } => ResolveError::NotGiven(NotGiven { at: page, limit }.into()),
        _ => ResolveError::Unmapped(page),
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
    use std::sync::Arc;

    use guest_mem::{Backing, HugetlbLimit, PMD_SIZE, RangeError, Region};
    use rustix::io::Errno;

    use super::*;

    fn memory() -> Arc<Region> {
        Arc::new(Region::map(PMD_SIZE, Backing::Base4k).unwrap())
    }

    #[test]
    fn a_page_is_found_where_it_is_and_stays_as_it_was() {
        let memory = memory();
        let page = memory.hva_at(PAGE_SIZE).unwrap();
        memory.write_u64(page, 0x1234).unwrap();
        let inside = page.checked_add(0x123).unwrap();
        let mmu = HostMmu::new([memory.clone() as Memory], |_| MapLevel::Pte);
        for write in [false, true] {
            let mapping = mmu.resolve(inside, write).unwrap();
            assert_eq!(mapping, Mapping { frame: page, level: MapLevel::Pte, writable: write });
        }
        assert_eq!(memory.read_u64(page).unwrap(), 0x1234);
    }

    /// If the host has no page left, the error names the limit, not an address that is not mapped.
    #[test]
    fn a_page_that_is_refused_is_told_from_one_that_is_not_there() {
        let page = Hva::new(PMD_SIZE);
        let range = HvaRange::with_len(page, PAGE_SIZE).unwrap();
        let limit = HugetlbLimit::Elsewhere { available: 7 };
        let refused = RegionError::NotGiven { range, limit: limit.clone(), source: Errno::FAULT };
        assert_eq!(untouched(page, refused), ResolveError::NotGiven(NotGiven { at: page, limit }.into()));
        let elsewhere = RangeError::Outside { range, region: HvaRange::empty(page) };
        assert_eq!(untouched(page, elsewhere.into()), ResolveError::Unmapped(page));
    }

    #[test]
    fn memory_outside_the_regions_is_not_touched() {
        let mmu = HostMmu::new([memory() as Memory], |_| MapLevel::Pte);
        let null = Hva::new(0);
        assert_eq!(mmu.resolve(null, true), Err(ResolveError::Unmapped(null)));
    }

    /// The MMU resolves its pages after all other owners of the memory are gone.
    #[test]
    fn the_memory_lives_as_long_as_the_mmu() {
        let memory = memory();
        let (page, kept) = (memory.range().start(), Arc::downgrade(&memory));
        let mmu = HostMmu::new([memory as Memory], |_| MapLevel::Pte);
        assert!(kept.upgrade().is_some());
        assert!(mmu.resolve(page, true).is_ok());
        drop(mmu);
        assert!(kept.upgrade().is_none());
    }
}
