//! The primary MMU, as a secondary one sees it: it is asked for a page, and may sleep.

use std::fmt;

use guest_mem::waits::Overdue;
use guest_mem::{HugetlbLimit, Hva, MapLevel, PAGE_SHIFT};

/// The target of a translation, in units of 4 KiB: a page frame number, below 2^52.
///
/// Consecutive frames of one PMD mapping have consecutive numbers.
pub trait Frame: Copy + Eq + fmt::Debug + Send + Sync + 'static {
    /// The frame with this number.
    fn from_pfn(pfn: u64) -> Self;
    /// The frame's number.
    fn pfn(self) -> u64;
}

/// In this process a page is found where it is mapped: its frame is its address.
impl Frame for Hva {
    fn from_pfn(pfn: u64) -> Self {
        Self::new(pfn << PAGE_SHIFT)
    }
    fn pfn(self) -> u64 {
        self.get() >> PAGE_SHIFT
    }
}

/// The answer of a primary MMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping<F> {
    /// The frame of the 4 KiB page asked for, whatever the level.
    pub frame: F,
    /// How the primary MMU maps it.
    pub level: MapLevel,
    /// Whether it may be written through this mapping.
    pub writable: bool,
}

/// A page that the primary MMU does not give.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum ResolveError {
    #[error("no guest memory is mapped at host address {0}")]
    Unmapped(Hva),
    #[error("host address {0} may not be written")]
    ReadOnly(Hva),
    /// In a box, which keeps the result of every access at two words.
    #[error(transparent)]
    NotGiven(Box<NotGiven>),
    /// Invalidations do not end.
    #[error(transparent)]
    Overdue(#[from] Overdue),
}

/// A page for which the kernel has no memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel gives no memory for host address {at}: {limit}")]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub struct NotGiven {
    pub at: Hva,
    pub limit: HugetlbLimit,
}

/// The primary MMU: the host's page tables, or a model of them.
pub trait PrimaryMmu: Send + Sync {
    /// The target of its translations.
    type Frame: Frame;

    /// Finds the page at `hva`, faulting it in if need be. May sleep; called with no lock held.
    ///
    /// # Errors
    /// Nothing mapped there, a write to what may not be written, or no page to be had.
    fn resolve(&self, hva: Hva, write: bool) -> Result<Mapping<Self::Frame>, ResolveError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_this_process_is_its_own_frame() {
        let page = Hva::new(0x7f12_3456_7000);
        assert_eq!(page.pfn(), 0x7_f123_4567);
        assert_eq!(Hva::from_pfn(page.pfn()), page);
    }
}
