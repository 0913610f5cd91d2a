//! Whether memory is what its backing says: a label is earned by the pages that are there.

use crate::backing::Backing;
use crate::folios::LargeFolio;
use crate::pagemap::{PageScanner, ScanError};
use crate::range::HvaRange;
use crate::region::Region;
use crate::state::{PageCounts, PageRun, PageState};
use crate::victim::{MapLevel, Order};

/// How much of some memory is what its backing says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Earned {
    /// Bytes that hold memory.
    pub resident: u64,
    /// Those of `resident` that are as the backing says: mapped by PMDs, in folios of its size, in base pages. `None` where
    /// only root may know: folios that PTEs map.
    pub as_said: Option<u64>,
}

impl Earned {
    /// Looks at all of a region.
    ///
    /// # Errors
    /// A kernel that refuses.
    pub fn of(scanner: &mut PageScanner, region: &Region) -> Result<Self, ScanError> {
        let (mut runs, mut folios) = (Vec::new(), Vec::new());
        scanner.scan_region(region, region.range(), &mut runs)?;
        let order = match region.backing() {
            Backing::Mthp(order) if scanner.knows_folios() => {
                for range in mapped_by_pte(&runs) {
                    scanner.large_folios(range, &mut folios)?;
                }
                Some(order)
            }
            _ => None,
        };
        Ok(Self::judge(region.backing(), &runs, order.map(|_| folios.as_slice())))
    }

    /// The same from what the pages are; `folios` are those that PTEs map, as far as they are known.
    fn judge(backing: Backing, runs: &[PageRun], folios: Option<&[LargeFolio]>) -> Self {
        let counts = PageCounts::of(runs);
        let by_pmd = counts.pmd_mapped - zero_by_pmd(runs);
        let as_said = match backing {
            Backing::Base4k | Backing::Memfd => Some(counts.resident() - by_pmd),
            Backing::Thp | Backing::MemfdThp | Backing::Hugetlb2m => Some(by_pmd),
            Backing::Mthp(order) => folios.map(|folios| pages_in_folios_of(order, folios)),
        };
        let bytes = |pages: u64| pages * Order::BASE.bytes();
        Self { resident: bytes(counts.resident()), as_said: as_said.map(bytes) }
    }

    /// The two together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let as_said = self.as_said.zip(other.as_said).map(|(a, b)| a + b);
        Self { resident: self.resident + other.resident, as_said }
    }

    /// The part of the memory that is as the backing says, between 0 and 1; `None` if that is not known, or nothing is there.
    pub fn fraction(&self) -> Option<f64> {
        self.as_said.filter(|_| self.resident > 0).map(|said| said as f64 / self.resident as f64)
    }
}

/// Pages of whole folios of this order.
fn pages_in_folios_of(order: Order, folios: &[LargeFolio]) -> u64 {
    folios.iter().filter(|folio| folio.order == order && folio.is_whole()).map(|folio| folio.mapped).sum()
}

fn mapped_by_pte(runs: &[PageRun]) -> impl Iterator<Item = HvaRange> {
    let by_pte = |run: &&PageRun| matches!(run.state, PageState::Mapped { level: MapLevel::Pte, .. });
    runs.iter().filter(by_pte).map(|run| run.range)
}

/// Pages of the huge zero page, which are no memory.
fn zero_by_pmd(runs: &[PageRun]) -> u64 {
    let zero = |run: &&PageRun| run.state == PageState::Zero(MapLevel::Pmd);
    runs.iter().filter(zero).map(|run| run.range.page_count()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{Hva, PAGE_SIZE, PMD_SIZE};

    fn run(page: u64, pages: u64, state: PageState) -> PageRun {
        PageRun { range: HvaRange::with_len(Hva::new(page * PAGE_SIZE), pages * PAGE_SIZE).unwrap(), state }
    }

    fn mapped(level: MapLevel) -> PageState {
        PageState::Mapped { level, file: false }
    }

    #[test]
    fn each_backing_is_judged_by_what_it_promises() {
        let order = Order::of_bytes(64 << 10).unwrap();
        let runs = [
            run(0, 512, mapped(MapLevel::Pmd)),
            run(512, 512, PageState::Zero(MapLevel::Pmd)),
            run(1024, 48, mapped(MapLevel::Pte)),
            run(1072, 16, PageState::Swapped),
            run(1088, 16, PageState::Cached),
            run(1104, 400, PageState::Absent),
        ];
        let folio =
            |page, mapped, order| LargeFolio { pages: run(page, mapped, runs[2].state).range, mapped, order };
        // One whole, one of which a part is gone, one of another size.
        let folios = [folio(1024, 16, order), folio(1040, 8, order), folio(1048, 8, Order::new(3).unwrap())];
        let fraction = |backing, folios| Earned::judge(backing, &runs, folios).fraction();
        let resident = 512.0 + 48.0 + 16.0;
        for (backing, said) in [
            (Backing::Base4k, 64.0),
            (Backing::Memfd, 64.0),
            (Backing::Thp, 512.0),
            (Backing::MemfdThp, 512.0),
            (Backing::Hugetlb2m, 512.0),
            (Backing::Mthp(order), 16.0),
        ] {
            assert_eq!(fraction(backing, Some(&folios)), Some(said / resident), "{backing}");
        }
        assert_eq!(fraction(Backing::Mthp(order), None), None, "only root sees folios");
        assert_eq!(Earned::judge(Backing::Base4k, &[], None).fraction(), None, "nothing is there");
    }

    #[test]
    fn base_pages_are_no_huge_pages() {
        let region = Region::map(2 * PMD_SIZE, Backing::Base4k).unwrap();
        region.populate(region.range()).unwrap();
        let earned = Earned::of(&mut PageScanner::new().unwrap(), &region).unwrap();
        assert_eq!(earned, Earned { resident: 2 * PMD_SIZE, as_said: Some(2 * PMD_SIZE) });
        let both = earned.and(Earned { resident: 4, as_said: None });
        assert_eq!((both.resident, both.fraction()), (2 * PMD_SIZE + 4, None));
    }
}
