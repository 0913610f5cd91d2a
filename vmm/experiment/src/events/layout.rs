//! The host's mapping of the arena: runs of pages in one state, which tile it.

use guest_mem::{MapLevel, PageRun, PageState};
use serde::{Deserialize, Serialize};

/// The state of a page in the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostState {
    /// Nothing: the next touch gives zeros.
    Absent,
    /// A page in the page cache that is not mapped.
    Cached,
    /// A page in swap.
    Swapped,
    /// The zero page, mapped by a PTE.
    ZeroByPte,
    /// The huge zero page.
    ZeroByPmd,
    /// A page, mapped by a PTE.
    MappedByPte,
    /// A page, mapped with its 2 MiB by a PMD entry.
    MappedByPmd,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutRun {
    /// The number of pages.
    pub pages: u64,
    /// Their common state.
    pub state: HostState,
}

impl From<&PageRun> for LayoutRun {
    fn from(run: &PageRun) -> Self {
        Self { pages: run.range.page_count(), state: run.state.into() }
    }
}
