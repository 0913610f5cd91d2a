//! The words of a plan: how large a system call is, and what it announces.

use std::fmt;
use std::str::FromStr;

use crate::range::HvaRange;
use crate::victim::Victim;

/// How much of the range one system call takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// `page`: 4 KiB each, whatever they are a part of.
    Page,
    /// `folio`: each folio whole, as far as the range has it; memory that holds nothing is left out.
    Folio,
    /// `region`: each aligned 2 MiB.
    Region,
    /// `range`: everything at once.
    Range,
}

/// One announcement to come, in the order the kernel makes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planned {
    /// A PMD-mapped huge page is split because a part of it is taken: these 2 MiB are announced.
    SplitPmd(HvaRange),
    /// A folio mapped by PTEs is split because a part of it is taken: what is mapped of it is announced (in each
    /// VMA apart, where a seam cuts it).
    SplitFolio(HvaRange),
    /// The reverse map is walked for one folio.
    Take(Victim),
    /// The operation announces exactly this range, whatever is mapped there.
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

/// One system call of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What it is asked for.
    pub range: HvaRange,
    /// Which of the plan's announcements it makes.
    pub announces: std::ops::Range<usize>,
}

/// A text that names no unit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown unit `{0}`: use page, folio, region or range")]
pub struct UnknownUnit(pub String);

impl Unit {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Page, Self::Folio, Self::Region, Self::Range];

    /// The name in scenarios and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Page => "page",
            Self::Folio => "folio",
            Self::Region => "region",
            Self::Range => "range",
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Unit {
    type Err = UnknownUnit;

    fn from_str(text: &str) -> Result<Self, UnknownUnit> {
        let known = Self::ALL.into_iter().find(|unit| unit.name() == text);
        known.ok_or_else(|| UnknownUnit(text.to_owned()))
    }
}
