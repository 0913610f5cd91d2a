//! Memory in which a huge page is put together before it moves to its place whole.

use guest_mem::{Backing, Hva, PMD_SIZE, Page, PageScanner, Region};

/// 2 MiB of memory of its own. `UFFDIO_MOVE` takes its pages away, and the next use begins with new ones.
#[derive(Debug, Default)]
pub(crate) struct HugeStage {
    region: Option<Region>,
    scanner: Option<PageScanner>,
}

impl HugeStage {
    /// Fills the stage by `fill` and returns it to be moved. `None` if there is no memory for it.
    pub fn fill<E>(&mut self, fill: impl FnOnce(&mut [Page]) -> Result<(), E>) -> Option<Result<&Region, E>> {
        if self.region.is_none() {
            self.region = Some(Region::map(PMD_SIZE, Backing::Thp).ok()?);
        }
        let region = self.region.as_ref()?;
        let pages = PMD_SIZE as usize / size_of::<Page>();
        // SAFETY: the region is ours alone: no guest has it, it is registered nowhere, and the exclusive borrow of
        // `self` is the only way to it. Its bytes are zeros until written.
        let pages = unsafe { std::slice::from_raw_parts_mut(region.range().start().as_ptr(), pages) };
        Some(fill(pages).map(|()| region))
    }
    /// Whether the pages that were moved from here to `at` are one huge page there. If there is a page table at `at`, even
    /// an empty one, the kernel splits the huge page and moves its parts. The stage then has a page table as well, and is
    /// mapped anew.
    pub fn arrived_whole(&mut self, at: Hva) -> bool {
        if self.scanner.is_none() {
            self.scanner = PageScanner::new().ok();
        }
        let state = self.scanner.as_mut().and_then(|scanner| scanner.page(at).ok());
        let whole = state.is_some_and(|state| state.is_pmd_mapped());
        if !whole {
            self.region = None;
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_one_block_and_is_mapped_anew_if_its_page_did_not_arrive_whole() {
        let mut stage = HugeStage::default();
        let filled = stage.fill(|pages| {
            assert_eq!(Page::bytes(pages).len() as u64, PMD_SIZE);
            pages[511][0] = 7;
            Ok::<(), ()>(())
        });
        let region = filled.expect("2 MiB can be had").unwrap();
        let (start, last) = (region.range().start(), region.hva_at(PMD_SIZE - 4096).unwrap());
        assert_eq!((region.range().len(), region.read_u64(last).unwrap()), (PMD_SIZE, 7));
        assert!(stage.fill(|_| Err::<(), u8>(3)).expect("it is there").is_err());
        // A page of the stage itself, which is 4 KiB or a part of 2 MiB.
        let huge = PageScanner::new().unwrap().page(start).unwrap().is_pmd_mapped();
        assert_eq!(stage.arrived_whole(start), huge);
        assert_eq!(stage.region.is_some(), huge);
        let small = Region::map(PMD_SIZE, Backing::Base4k).unwrap();
        small.populate(small.range()).unwrap();
        assert!(stage.fill(|_| Ok::<(), ()>(())).is_some());
        assert!(!stage.arrived_whole(small.range().start()) && stage.region.is_none());
    }
}
