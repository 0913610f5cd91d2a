//! The ranges that an operation will announce, predicted before it is done.
//!
//! Reclaim by address is a system call, which announces ranges to every secondary MMU. A plan predicts them from what
//! pagemap says of the memory now:
//!
//! ```text
//!   range ── cut at seams (VMA boundaries) ── each piece against runs and folios ── Planned
//! ```
//!
//! The prediction itself is a pure function ([`crate::announce`]); this file has the scan that feeds it.
//!
//! A plan cannot know: folio orders below the PMD where `/proc/kpageflags` is closed
//! ([`PageScanner::knows_folios`]): such pages count as base pages. Whether an empty block still has a page
//! table, which decides if a VMA split there is announced: it counts as having none. How finely shmem splits
//! the folios at the ends of a hole, which differs between kernels: one split a folio is planned.

use crate::address::PMD_SIZE;
use crate::announce::{Layout, announce};
use crate::backing::Backing;
use crate::folios::LargeFolio;
use crate::pagemap::PageScanner;
use crate::planned::Planned;
use crate::range::HvaRange;
use crate::reclaim::Operation;
use crate::region::Region;
use crate::scan_error::ScanError;
use crate::state::{PageRun, PageState};
use crate::victim::MapLevel;

/// Makes plans. Keeps its buffers, so that planning allocates nothing once warm.
#[derive(Debug, Default)]
pub struct Planner {
    runs: Vec<PageRun>,
    folios: Vec<LargeFolio>,
}

impl Planner {
    /// A planner with empty buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Plans an operation, one system call on `range`; `out` is cleared first.
    ///
    /// # Errors
    /// A range that does not fit the region, or a kernel that refuses.
    pub fn plan(
        &mut self,
        scanner: &mut PageScanner,
        region: &Region,
        range: HvaRange,
        operation: Operation,
        out: &mut Vec<Planned>,
    ) -> Result<(), ScanError> {
        out.clear();
        self.folios.clear();
        region.check(range)?;
        // Whole blocks: the pages beside the range decide which folios are split.
        let blocks = range.checked_align_outward(PMD_SIZE).and_then(|wide| wide.intersection(region.range()));
        let Some(blocks) = blocks else { return Ok(()) };
        scanner.scan_region(region, blocks, &mut self.runs)?;
        if self.may_hold_large_folios(region) && scanner.knows_folios() {
            scanner.large_folios(blocks, &mut self.folios)?;
        }
        let layout = Layout { runs: &self.runs, folios: &self.folios, region };
        announce(&layout, range, operation, out);
        Ok(())
    }

    /// Whether a folio mapped by PTEs can be larger than a page here. Looking for one reads the flags of every
    /// page frame around, some 80 us, so it is not done where the answer is known: `4k` and `memfd` have none,
    /// hugetlb is always whole, and folios that a PMD maps are in the runs.
    fn may_hold_large_folios(&self, region: &Region) -> bool {
        let by_pte = |run: &PageRun| {
            matches!(run.state, PageState::Mapped { level: MapLevel::Pte, .. } | PageState::Cached)
        };
        match region.backing() {
            Backing::Base4k | Backing::Memfd | Backing::Hugetlb2m => false,
            Backing::Mthp(_) | Backing::Thp | Backing::MemfdThp => self.runs.iter().any(by_pte),
        }
    }
}
