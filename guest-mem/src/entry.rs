//! The 8-byte entries of `/proc/PID/pagemap`, one a page.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::address::PAGE_SIZE;
use crate::range::HvaRange;
use crate::scan_error::ScanError;

/// One entry of `/proc/PID/pagemap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry(pub(crate) u64);

impl Entry {
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    const FILE: u64 = 1 << 61;
    const PFN: u64 = (1 << 55) - 1;

    pub(crate) fn is_present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }
    pub(crate) fn is_swapped(self) -> bool {
        self.0 & Self::SWAPPED != 0
    }
    pub(crate) fn is_file(self) -> bool {
        self.0 & Self::FILE != 0
    }
    /// The page frame, which the kernel shows as 0 to all but root.
    pub(crate) fn pfn(self) -> Option<u64> {
        let pfn = self.0 & Self::PFN;
        (self.is_present() && pfn != 0).then_some(pfn)
    }
}

/// Reads the entries of a page-aligned range, one a page, into `out`.
pub(crate) fn read_entries(pagemap: &File, range: HvaRange, out: &mut Vec<u8>) -> Result<(), ScanError> {
    out.resize((range.page_count() * 8) as usize, 0);
    let offset = range.start().get() / PAGE_SIZE * 8;
    let file = "/proc/self/pagemap";
    pagemap.read_exact_at(out, offset).map_err(|source| ScanError::Read { file, range, source })
}

/// The entries in a buffer of [`read_entries`].
pub(crate) fn entries(buffer: &[u8]) -> impl ExactSizeIterator<Item = Entry> {
    buffer.as_chunks::<8>().0.iter().map(|bytes| Entry(u64::from_ne_bytes(*bytes)))
}
