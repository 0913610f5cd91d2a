//! One announcement of a plan.

use crate::range::HvaRange;
use crate::victim::Victim;

/// One announcement to come, in the order the kernel makes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planned {
    /// A PMD-mapped huge page is split because a part of it is taken: these 2 MiB are announced.
    SplitPmd(HvaRange),
    /// A folio mapped by PTEs is split because a part of it is taken: the mapped part is announced (for each VMA by
    /// itself, where a seam cuts it).
    SplitFolio(HvaRange),
    /// The reverse map is walked for one folio.
    Take(Victim),
    /// The operation announces exactly this range, independent of the mappings there.
    Exact(HvaRange),
}

impl Planned {
    /// The range the kernel announces.
    pub fn range(&self) -> HvaRange {
        match self {
            Self::SplitPmd(range) | Self::SplitFolio(range) | Self::Exact(range) => *range,
            Self::Take(victim) => victim.pages,
        }
    }
}
