//! How far it is known beforehand what a system call announces.

use serde::{Deserialize, Serialize};

/// How far it is known beforehand what a system call announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Promise {
    /// Exactly the expected ranges; but a folio for which there is no contiguous swap space comes apart, and leaves page by
    /// page.
    Exact,
    /// These, and besides how the kernel chose to split the folios at their ends, inside the same 2 MiB blocks.
    AtLeast,
    /// The kernel chooses, or the call was made again for what had stayed: nothing is compared.
    Open,
    /// As [`Promise::Open`], and the choice is made by reclaim.
    Reclaim,
}

impl Promise {
    /// Whether what is announced is compared with what was expected.
    pub const fn is_compared(self) -> bool {
        matches!(self, Self::Exact | Self::AtLeast)
    }
}
