//! The prediction behind a plan: given runs, folios and VMA boundaries, the ranges an operation announces.
//! No system calls.
//!
//! | operation | for each piece of the call |
//! | --- | --- |
//! | pageout | each folio that lies whole in the piece, at its order; else its split, then its pages one by one (shared memory: the split only, which unmaps it all and leaves nothing to take) |
//! | cold | the splits only |
//! | free | the piece; then the splits |
//! | dontneed | the piece; then the splits of PMD mappings |
//! | remove, punch | the piece; the splits of PMD mappings; the splits of the folios at its ends |
//! | collapse | each block that is not PMD-mapped yet (shared memory: before it, each of its mapped pages) |
//! | protect | the VMA splits and the piece; then, on the way back, the piece |
//! | remap | the piece, the splits of PMD mappings; on the way back, the VMA splits and the piece |

use crate::address::{Address, Hva, PAGE_SIZE, PMD_SIZE};
use crate::folios::LargeFolio;
use crate::planned::Planned;
use crate::range::HvaRange;
use crate::reclaim::Operation;
use crate::region::Region;
use crate::state::{PageRun, PageState};
use crate::victim::{MapLevel, Order, Victim};

/// The state of the memory in all blocks that the range touches.
pub(crate) struct Layout<'a> {
    /// Tiling the 2 MiB blocks that the range touches.
    pub(crate) runs: &'a [PageRun],
    /// Mapped by PTEs, in order of address.
    pub(crate) folios: &'a [LargeFolio],
    /// For its seams and its backing.
    pub(crate) region: &'a Region,
}

impl Layout<'_> {
    /// The runs in `part`, clipped to it.
    fn runs_in(&self, part: HvaRange) -> impl Iterator<Item = PageRun> {
        let first = self.runs.partition_point(|run| run.range.end() <= part.start());
        self.runs[first..].iter().map_while(move |run| {
            run.range.intersection(part).map(|range| PageRun { range, state: run.state })
        })
    }
    /// The large folio that has a page at `at`.
    fn folio_at(&self, at: Hva) -> Option<&LargeFolio> {
        let after = self.folios.partition_point(|folio| folio.pages.start() <= at);
        self.folios[..after].last().filter(|folio| folio.pages.contains(at))
    }
    /// The part of the folio at the start of `rest`, judged by `piece`.
    fn next_part(&self, rest: HvaRange, level: MapLevel, piece: HvaRange) -> Part {
        let at = rest.start();
        let (folio, order, intact) = match (level, self.folio_at(at)) {
            (MapLevel::Pmd, _) => (block_of(at), Order::PMD, true),
            (MapLevel::Pte, Some(folio)) => (folio.pages, folio.order, folio.is_whole()),
            (MapLevel::Pte, None) => (page_at(at), Order::BASE, true),
        };
        let pages = folio.intersection(rest).expect("the folio was found at the start of the rest");
        Part { pages, folio, order, level, whole: intact && piece.covers(folio) }
    }
    fn is_populated(&self, block: HvaRange) -> bool {
        self.runs_in(block).any(|run| run.state != PageState::Absent)
    }
    fn is_anonymous(&self) -> bool {
        self.region.backing().is_anonymous()
    }
}

/// The part of one folio in a stretch of memory.
struct Part {
    pages: HvaRange,
    /// All of the folio that is mapped.
    folio: HvaRange,
    order: Order,
    level: MapLevel,
    /// Whether the piece has the whole folio, so that it need not be split.
    whole: bool,
}

/// Appends what `operation` on `range` announces.
pub(crate) fn announce(layout: &Layout<'_>, range: HvaRange, operation: Operation, out: &mut Vec<Planned>) {
    if !range.is_empty() {
        Prediction { layout, out, split_block: None, split_folio: None }.call(operation, range);
    }
}

/// The announcements predicted so far, each split once.
struct Prediction<'a, 'l> {
    layout: &'a Layout<'l>,
    out: &'a mut Vec<Planned>,
    /// The last block and folio split: a call goes up in address, so the last is enough to remember.
    split_block: Option<HvaRange>,
    split_folio: Option<HvaRange>,
}

impl Prediction<'_, '_> {
    fn call(&mut self, operation: Operation, call: HvaRange) {
        let region = self.layout.region;
        for piece in region.vma_pieces(call) {
            match operation {
                Operation::PageOut => self.walk_folios(piece, true),
                Operation::Cold => self.walk_folios(piece, false),
                Operation::Free => {
                    self.exact(piece);
                    self.walk_folios(piece, false);
                }
                Operation::DontNeed => {
                    self.exact(piece);
                    self.split_pmds(piece);
                }
                Operation::PunchHole | Operation::Fallocate => {
                    self.exact(piece);
                    self.split_pmds(piece);
                    self.split_ends(piece);
                }
                Operation::Collapse => self.collapse(piece),
                Operation::Protect => {
                    self.split_vma(piece);
                    self.exact(piece);
                }
                Operation::Remap => {
                    self.exact(piece);
                    self.split_pmds(piece);
                    self.split_vma(piece);
                    self.exact(piece);
                }
            }
        }
        if operation == Operation::Protect {
            region.vma_pieces(call).for_each(|piece| self.exact(piece));
        }
    }

    fn exact(&mut self, piece: HvaRange) {
        self.out.push(Planned::Exact(piece));
    }

    fn take(&mut self, pages: HvaRange, order: Order, level: MapLevel) {
        let anonymous = self.layout.is_anonymous();
        self.out.push(Planned::Take(Victim { pages, order, level, anonymous }));
    }

    /// The folios mapped in `piece`: those it has a part of are split; then, if `takes` says so, whole ones
    /// are taken whole, and the pages of the split ones one by one. The kernel goes block by block: it splits
    /// as it collects folios, and walks the reverse map when it has collected.
    fn walk_folios(&mut self, piece: HvaRange, takes: bool) {
        for block in piece.block_pieces() {
            self.each_folio(block, piece, Self::split_part);
            if takes {
                self.each_folio(block, piece, Self::take_part);
            }
        }
    }

    /// Calls `visit` with each folio's part of `block`.
    fn each_folio(&mut self, block: HvaRange, piece: HvaRange, visit: impl Fn(&mut Self, &Part)) {
        let layout = self.layout;
        for run in layout.runs_in(block) {
            let PageState::Mapped { level, .. } = run.state else { continue };
            let mut rest = run.range;
            while !rest.is_empty() {
                let part = layout.next_part(rest, level, piece);
                visit(self, &part);
                rest = HvaRange::new(part.pages.end(), rest.end()).unwrap_or(HvaRange::empty(rest.end()));
            }
        }
    }

    fn split_part(&mut self, part: &Part) {
        match part.level {
            _ if part.whole => {}
            MapLevel::Pmd => self.split_block(part.folio),
            MapLevel::Pte => self.split_folio(part.folio),
        }
    }

    fn take_part(&mut self, part: &Part) {
        if part.whole {
            self.take(part.pages, part.order, part.level);
        } else if self.layout.is_anonymous() {
            part.pages.pages().for_each(|page| self.take(page, Order::BASE, MapLevel::Pte));
        }
        // A split folio of shared memory is left unmapped, and reclaim by address passes over it.
    }

    fn split_folio(&mut self, folio: HvaRange) {
        if self.split_folio != Some(folio) {
            self.split_folio = Some(folio);
            // The reverse map finds it once in each VMA that has a part of it.
            self.out.extend(self.layout.region.vma_pieces(folio).map(Planned::SplitFolio));
        }
    }

    fn split_block(&mut self, block: HvaRange) {
        if self.split_block != Some(block) {
            self.split_block = Some(block);
            self.out.push(Planned::SplitPmd(block));
        }
    }

    /// PMD mappings (the huge zero page's too) that `piece` covers in part.
    fn split_pmds(&mut self, piece: HvaRange) {
        let layout = self.layout;
        for run in layout.runs_in(piece).filter(|run| run.state.is_pmd_mapped()) {
            for block in run.range.block_pieces().map(|part| block_of(part.start())) {
                if !piece.covers(block) {
                    self.split_block(block);
                }
            }
        }
    }

    /// Large folios of the page cache that `piece` covers in part: at most one at each end.
    fn split_ends(&mut self, piece: HvaRange) {
        let Some(last) = piece.end().get().checked_sub(PAGE_SIZE).map(Hva::new) else { return };
        for at in [piece.start(), last] {
            let Some(run) = self.layout.runs_in(page_at(at)).next() else { continue };
            let folio = match (run.state, self.layout.folio_at(at)) {
                (PageState::Mapped { level: MapLevel::Pmd, .. }, _) => block_of(at),
                (PageState::Mapped { .. }, Some(folio)) => folio.pages,
                _ => continue,
            };
            if !piece.covers(folio) {
                self.split_folio(folio);
            }
        }
    }

    /// The VMA is split where `piece` begins and ends, unless a seam or the region is there already.
    fn split_vma(&mut self, piece: HvaRange) {
        let layout = self.layout;
        for block in layout.region.unseamed_edges(piece).filter(|&block| layout.is_populated(block)) {
            self.out.push(Planned::SplitPmd(block));
        }
    }

    fn collapse(&mut self, piece: HvaRange) {
        let layout = self.layout;
        for block in piece.block_pieces().filter(|block| block.len() == PMD_SIZE) {
            let mapped = || layout.runs_in(block).filter(|run| run.state.is_present());
            if layout.runs_in(block).all(|run| run.state.is_pmd_mapped() && !run.state.is_zero()) {
                continue;
            }
            if layout.is_anonymous() {
                if layout.is_populated(block) {
                    self.exact(block);
                }
            } else if mapped().next().is_some() {
                mapped().flat_map(|run| run.range.pages()).for_each(|page| self.exact(page));
                self.exact(block);
            }
        }
    }
}

fn block_of(at: Hva) -> HvaRange {
    HvaRange::with_len(at.align_down(PMD_SIZE), PMD_SIZE).expect("regions end far below 2^64")
}

fn page_at(at: Hva) -> HvaRange {
    HvaRange::with_len(at, PAGE_SIZE).expect("regions end far below 2^64")
}

#[cfg(test)]
mod tests;
