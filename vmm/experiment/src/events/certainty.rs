//! What is known before a system call of the ranges that the kernel announces for it.

use serde::{Deserialize, Serialize};

/// What is known before a system call of the ranges that the kernel announces for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Certainty {
    /// Exactly the expected ranges; but a folio for which there is no contiguous swap space is split, and leaves page by page.
    Exact,
    /// The expected ranges, and more inside the same 2 MiB blocks: the kernel chooses how it splits the folios at their ends.
    AtLeast,
    /// Nothing: the kernel chooses, or the call was repeated for pages that had stayed. Nothing is compared.
    Unknown,
    /// As [`Certainty::Unknown`], and reclaim makes the choice.
    Reclaim,
}

impl Certainty {
    /// Whether what is announced is compared with what was expected.
    pub const fn is_compared(self) -> bool {
        matches!(self, Self::Exact | Self::AtLeast)
    }
}
