//! The seams of a region: where they are put, and how they cut a range.

use crate::address::{Address, Hva, PMD_SIZE};
use crate::backing::Backing;
use crate::range::HvaRange;
use crate::region::Region;
use crate::seam::SeamError;

impl Region {
    /// Puts a seam into each 2 MiB block that `range` touches and that has none, so that a toggle inside it
    /// is exact. Returns how many were new: each of them announces its block once, and splits the PMD mapping
    /// of a block that has one.
    ///
    /// # Errors
    /// hugetlb, a range that does not fit, or more VMAs than the kernel allows.
    pub fn seam(&self, range: HvaRange) -> Result<u64, SeamError> {
        self.check(range)?;
        if self.backing() == Backing::Hugetlb2m {
            return Err(SeamError::Hugetlb);
        }
        self.seams().install(range)
    }

    /// The 2 MiB blocks without a seam of which `range` covers a part only: a toggle of `range` puts a seam
    /// into each, and with it announces each.
    pub fn unseamed_edges(&self, range: HvaRange) -> impl Iterator<Item = HvaRange> {
        let block_of = |at: Hva| HvaRange::with_len(at.align_down(PMD_SIZE), PMD_SIZE);
        let start =
            (!range.is_empty() && !range.start().is_aligned(PMD_SIZE)).then(|| block_of(range.start()));
        let end = (!range.is_empty() && !range.end().is_aligned(PMD_SIZE)).then(|| block_of(range.end()));
        let (start, end) = (start.flatten(), end.flatten().filter(|&block| Some(block) != start.flatten()));
        let unseamed = move |block: &HvaRange| self.range().covers(*block) && !self.seams().has(*block);
        start.into_iter().chain(end).filter(unseamed)
    }

    /// `range` cut where seams cut the region's VMAs. The kernel announces a range operation once a piece.
    pub fn vma_pieces(&self, range: HvaRange) -> impl Iterator<Item = HvaRange> {
        self.seams().pieces(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{PAGE_SIZE, PMD_SIZE};

    #[test]
    fn seams_are_put_once() {
        let region = Region::map(4 * PMD_SIZE, Backing::Base4k).unwrap();
        let part = region.slice(PMD_SIZE + PAGE_SIZE, PMD_SIZE).unwrap();
        assert_eq!(region.unseamed_edges(part).count(), 2);
        assert_eq!(region.seam(part).unwrap(), 2);
        assert_eq!(region.seam(part).unwrap(), 0);
        assert_eq!(region.unseamed_edges(part).count(), 0);
        assert_eq!(region.vma_pieces(region.range()).count(), 5, "two blocks have a seam");
    }

    #[test]
    fn whole_blocks_need_no_seam() {
        let region = Region::map(3 * PMD_SIZE, Backing::Base4k).unwrap();
        assert_eq!(region.unseamed_edges(region.range()).count(), 0);
        let one_page = region.slice(PMD_SIZE, PAGE_SIZE).unwrap();
        let edges: Vec<_> = region.unseamed_edges(one_page).collect();
        assert_eq!(edges, [region.slice(PMD_SIZE, PMD_SIZE).unwrap()]);
    }
}
