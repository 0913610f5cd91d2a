//! The state of pages: mapped, swapped out, in the page cache only, or absent. Plain data, no system calls.

use std::fmt;

use crate::address::PAGE_SIZE;
use crate::range::HvaRange;
use crate::victim::MapLevel;

/// The state of one base page in this process's mapping of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageState {
    /// Never touched, or discarded: the next touch gives zeroes.
    Absent,
    /// Shared memory only: in the page cache, but no page-table entry here leads to it. The next touch is a
    /// minor fault.
    Cached,
    /// In swap. A page under migration looks the same for the moment it takes.
    Swapped,
    /// Mapped to the zero page, which costs no memory and cannot be evicted.
    Zero(MapLevel),
    /// Mapped to a page of its own.
    Mapped {
        /// By a PTE or by a PMD entry (for hugetlb: always the latter).
        level: MapLevel,
        /// Whether the page belongs to a file or to shared memory.
        file: bool,
    },
}

impl PageState {
    /// Whether a page-table entry leads to a page: a touch does not fault. True of the zero page as well.
    pub fn is_present(self) -> bool {
        matches!(self, Self::Zero(_) | Self::Mapped { .. })
    }
    /// Whether the page holds memory, mapped here or not.
    pub fn is_resident(self) -> bool {
        matches!(self, Self::Cached | Self::Mapped { .. })
    }
    /// Whether the page is in swap.
    pub fn is_swapped(self) -> bool {
        self == Self::Swapped
    }
    /// Whether one PMD entry maps the page together with its 2 MiB.
    pub fn is_pmd_mapped(self) -> bool {
        matches!(self, Self::Zero(MapLevel::Pmd) | Self::Mapped { level: MapLevel::Pmd, .. })
    }
    /// Whether the zero page is mapped in its place.
    pub fn is_zero(self) -> bool {
        matches!(self, Self::Zero(_))
    }
}

impl fmt::Display for PageState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absent => "absent",
            Self::Cached => "cached, not mapped",
            Self::Swapped => "swapped out",
            Self::Zero(_) => "the zero page",
            Self::Mapped { level: MapLevel::Pte, .. } => "mapped by PTE",
            Self::Mapped { level: MapLevel::Pmd, .. } => "mapped by PMD",
        })
    }
}

/// Consecutive pages in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// The pages: page aligned, not empty.
    pub range: HvaRange,
    /// The state of each.
    pub state: PageState,
}

/// Appends a run, merged with the last one where the two touch and agree. Empty ranges are dropped.
pub(crate) fn push_run(runs: &mut Vec<PageRun>, range: HvaRange, state: PageState) {
    if range.is_empty() {
        return;
    }
    if let Some(last) = runs.last_mut()
        && last.state == state
        && last.range.end() == range.start()
    {
        last.range = last.range.hull(range);
        return;
    }
    runs.push(PageRun { range, state });
}

/// How many base pages of a range are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageCounts {
    /// Mapped here, the zero page included.
    pub present: u64,
    /// Those of `present` that a PMD entry maps.
    pub pmd_mapped: u64,
    /// In swap.
    pub swapped: u64,
    /// Those of `present` that are the zero page.
    pub zero: u64,
    /// In the page cache and not mapped here (shared memory only).
    pub cached: u64,
    /// None of these.
    pub absent: u64,
}

impl PageCounts {
    /// Counts the pages of some runs.
    pub fn of(runs: &[PageRun]) -> Self {
        runs.iter().fold(Self::default(), |mut counts, run| {
            counts.add(run.state, run.range.page_count());
            counts
        })
    }

    fn add(&mut self, state: PageState, pages: u64) {
        match state {
            PageState::Absent => self.absent += pages,
            PageState::Cached => self.cached += pages,
            PageState::Swapped => self.swapped += pages,
            PageState::Zero(_) | PageState::Mapped { .. } => self.present += pages,
        }
        if state.is_pmd_mapped() {
            self.pmd_mapped += pages;
        }
        if state.is_zero() {
            self.zero += pages;
        }
    }

    /// All pages counted.
    pub fn total(&self) -> u64 {
        self.present + self.swapped + self.cached + self.absent
    }
    /// Pages that hold memory, mapped here or not.
    pub fn resident(&self) -> u64 {
        self.present - self.zero + self.cached
    }
    /// Bytes that hold memory.
    pub fn resident_bytes(&self) -> u64 {
        self.resident() * PAGE_SIZE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Hva;

    fn pages(from: u64, to: u64) -> HvaRange {
        HvaRange::new(Hva::new(from * PAGE_SIZE), Hva::new(to * PAGE_SIZE)).unwrap()
    }

    #[test]
    fn runs_merge_only_where_they_touch_and_agree() {
        let mut runs = Vec::new();
        push_run(&mut runs, pages(0, 2), PageState::Swapped);
        push_run(&mut runs, pages(2, 2), PageState::Absent);
        push_run(&mut runs, pages(2, 3), PageState::Swapped);
        push_run(&mut runs, pages(4, 5), PageState::Swapped);
        push_run(&mut runs, pages(5, 6), PageState::Cached);
        let got: Vec<_> = runs.iter().map(|run| (run.range, run.state)).collect();
        assert_eq!(
            got,
            [
                (pages(0, 3), PageState::Swapped),
                (pages(4, 5), PageState::Swapped),
                (pages(5, 6), PageState::Cached)
            ]
        );
    }

    #[test]
    fn counts_tell_memory_from_mappings() {
        let run = |from, to, state| PageRun { range: pages(from, to), state };
        let counts = PageCounts::of(&[
            run(0, 512, PageState::Mapped { level: MapLevel::Pmd, file: false }),
            run(512, 514, PageState::Mapped { level: MapLevel::Pte, file: false }),
            run(514, 515, PageState::Zero(MapLevel::Pte)),
            run(515, 518, PageState::Swapped),
            run(518, 519, PageState::Cached),
            run(519, 524, PageState::Absent),
        ]);
        let expected =
            PageCounts { present: 515, pmd_mapped: 512, swapped: 3, zero: 1, cached: 1, absent: 5 };
        assert_eq!(counts, expected);
        assert_eq!((counts.total(), counts.resident()), (524, 515));
    }
}
