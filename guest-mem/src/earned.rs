//! Whether memory is as its backing says: a label is given by the state of the pages.

use crate::backing::Backing;
use crate::folios::LargeFolio;
use crate::pagemap::PageScanner;
use crate::range::HvaRange;
use crate::region::Region;
use crate::scan_error::ScanError;
use crate::state::{PageCounts, PageRun, PageState};
use crate::victim::{MapLevel, Order};

/// How much of some memory is as its backing says, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Earned {
    /// Bytes in memory.
    pub resident: u64,
    /// That of `resident` which PMDs map.
    pub by_pmd: u64,
    /// That of `resident` which is as the backing says: mapped by PMDs, in folios of its size, in base pages. `None` where
    /// only root may know: folios that PTEs map.
    pub as_said: Option<u64>,
}

impl Earned {
    /// No memory at all.
    pub const NOTHING: Self = Self { resident: 0, by_pmd: 0, as_said: Some(0) };

    /// Looks at all of a region.
    pub fn of(scanner: &mut PageScanner, region: &Region) -> Result<Self, ScanError> {
        let (mut runs, mut folios) = (Vec::new(), NamedFolios::default());
        scanner.scan_region(region, region.range(), &mut runs)?;
        folios.look(scanner, region, region.range())?;
        Ok(folios.judge(region.backing(), &runs))
    }

    /// The two together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            resident: self.resident + other.resident,
            by_pmd: self.by_pmd + other.by_pmd,
            as_said: self.as_said.zip(other.as_said).map(|(a, b)| a + b),
        }
    }

    /// The part of the memory that is as the backing says, between 0 and 1; `None` if that is not known, or nothing is there.
    pub fn fraction(&self) -> Option<f64> {
        self.as_said.filter(|_| self.resident > 0).map(|said| said as f64 / self.resident as f64)
    }
}

/// The folios of the size that a backing names, where PTEs map them. Keeps its buffer, so that looking again allocates
/// nothing.
#[derive(Debug, Default)]
pub struct NamedFolios {
    /// Whole ones, in order of address.
    folios: Vec<LargeFolio>,
    /// Whether there would be any to be seen.
    known: bool,
}

impl NamedFolios {
    /// Looks at the folios that have pages in a part of a region; at none if the backing names no size.
    pub fn look(
        &mut self,
        scanner: &mut PageScanner,
        region: &Region,
        range: HvaRange,
    ) -> Result<(), ScanError> {
        self.folios.clear();
        let Backing::Mthp(order) = region.backing() else { return Ok(()) };
        self.known = scanner.knows_folios();
        // Whole folios: they are aligned to their size where they are mapped.
        let wide = range.checked_align_outward(order.bytes());
        let wide = wide.and_then(|wide| wide.intersection(region.range()));
        if let Some(wide) = wide.filter(|_| self.known) {
            scanner.large_folios(wide, &mut self.folios)?;
            self.folios.retain(|folio| folio.order == order && folio.is_whole());
        }
        Ok(())
    }

    /// How much of these pages, which were looked at, is as the backing says.
    pub fn judge(&self, backing: Backing, runs: &[PageRun]) -> Earned {
        let counts = PageCounts::of(runs);
        let by_pmd = counts.pmd_mapped - zero_by_pmd(runs);
        let as_said = match backing {
            Backing::Base4k | Backing::Memfd => Some(counts.resident() - by_pmd),
            Backing::Thp | Backing::MemfdThp | Backing::Hugetlb2m => Some(by_pmd),
            Backing::Mthp(_) => {
                self.known.then(|| mapped_by_pte(runs).map(|range| self.pages_in(range)).sum())
            }
        };
        let bytes = |pages: u64| pages * Order::BASE.bytes();
        Earned { resident: bytes(counts.resident()), by_pmd: bytes(by_pmd), as_said: as_said.map(bytes) }
    }

    /// Pages of a range that lie in one of them.
    fn pages_in(&self, range: HvaRange) -> u64 {
        let first = self.folios.partition_point(|folio| folio.pages.end() <= range.start());
        let inside = self.folios[first..].iter().map_while(|folio| folio.pages.intersection(range));
        inside.map(|part| part.page_count()).sum()
    }
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
    fn each_backing_is_judged_by_its_own_rule() {
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
        let seen = NamedFolios { folios: vec![folio(1024, 16, order)], known: true };
        let hidden = NamedFolios::default();
        let fraction = |backing| seen.judge(backing, &runs).fraction();
        let resident = 512.0 + 48.0 + 16.0;
        for (backing, said) in [
            (Backing::Base4k, 64.0),
            (Backing::Memfd, 64.0),
            (Backing::Thp, 512.0),
            (Backing::MemfdThp, 512.0),
            (Backing::Hugetlb2m, 512.0),
            (Backing::Mthp(order), 16.0),
        ] {
            assert_eq!(fraction(backing), Some(said / resident), "{backing}");
        }
        assert_eq!(hidden.judge(Backing::Mthp(order), &runs).fraction(), None, "only root sees folios");
        assert_eq!(hidden.judge(Backing::Base4k, &[]).fraction(), None, "nothing is there");
        // A part of a folio, and pages that are not mapped.
        let part = [run(1030, 20, mapped(MapLevel::Pte)), run(1072, 16, PageState::Swapped)];
        assert_eq!(seen.judge(Backing::Mthp(order), &part).as_said, Some(10 * PAGE_SIZE));
    }

    #[test]
    fn base_pages_are_no_huge_pages() {
        let region = Region::map(2 * PMD_SIZE, Backing::Base4k).unwrap();
        region.populate(region.range()).unwrap();
        let earned = Earned::of(&mut PageScanner::new().unwrap(), &region).unwrap();
        assert_eq!(earned, Earned { resident: 2 * PMD_SIZE, by_pmd: 0, as_said: Some(2 * PMD_SIZE) });
        let both = earned.and(Earned { resident: 4, as_said: None, ..Earned::NOTHING });
        assert_eq!((both.resident, both.fraction()), (2 * PMD_SIZE + 4, None));
    }
}
