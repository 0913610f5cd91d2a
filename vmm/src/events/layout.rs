//! How the host mapped the arena: runs of pages in one state, which tile it.

use guest_mem::{MapLevel, PageRun, PageState};

/// What the host had for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostState {
    /// Nothing: the next touch gives zeros.
    Absent = 0,
    /// A page in the page cache that is not mapped.
    Cached = 1,
    /// A page in swap.
    Swapped = 2,
    /// The zero page, mapped by a PTE.
    ZeroByPte = 3,
    /// The huge zero page.
    ZeroByPmd = 4,
    /// A page, mapped by a PTE.
    MappedByPte = 5,
    /// A page, mapped with its 2 MiB by a PMD entry.
    MappedByPmd = 6,
}

impl HostState {
    const ALL: [Self; 7] = [
        Self::Absent,
        Self::Cached,
        Self::Swapped,
        Self::ZeroByPte,
        Self::ZeroByPmd,
        Self::MappedByPte,
        Self::MappedByPmd,
    ];

    /// The state by its number in a log.
    pub(super) fn of_number(number: u64) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }
}

impl From<PageState> for HostState {
    fn from(state: PageState) -> Self {
        match state {
            PageState::Absent => Self::Absent,
            PageState::Cached => Self::Cached,
            PageState::Swapped => Self::Swapped,
            PageState::Zero(MapLevel::Pte) => Self::ZeroByPte,
            PageState::Zero(MapLevel::Pmd) => Self::ZeroByPmd,
            PageState::Mapped { level: MapLevel::Pte, .. } => Self::MappedByPte,
            PageState::Mapped { level: MapLevel::Pmd, .. } => Self::MappedByPmd,
        }
    }
}

/// Pages side by side in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayoutRun {
    /// How many pages, from the first.
    pub pages: u64,
    /// Their state.
    pub state: HostState,
}

impl From<&PageRun> for LayoutRun {
    fn from(run: &PageRun) -> Self {
        Self { pages: run.range.page_count(), state: run.state.into() }
    }
}
