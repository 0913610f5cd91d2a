//! Folios below the PMD, read from the flags of their page frames. For root only: the kernel hides frames from
//! other users.

use std::fs::File;

use crate::entry::{entries, read_entries};
use crate::kpageflags::{Frames, KPageFlags};
use crate::range::HvaRange;
use crate::scan_error::ScanError;
use crate::victim::Order;

/// A folio of more than one page, mapped by PTEs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LargeFolio {
    /// From its first to its last mapped page, here.
    pub pages: HvaRange,
    /// How many of its pages are mapped here: fewer than the order says once a part was discarded.
    pub mapped: u64,
    /// Its order.
    pub order: Order,
}

impl LargeFolio {
    /// Whether every page of the folio is mapped, in one piece.
    pub fn is_whole(&self) -> bool {
        self.mapped == self.order.pages() && self.pages.len() == self.order.bytes()
    }
}

/// Reads folios through a process's pagemap.
#[derive(Debug)]
pub(crate) struct FolioReader {
    kpageflags: KPageFlags,
    buffer: Vec<u8>,
    available: bool,
}

impl FolioReader {
    pub(crate) fn new() -> Self {
        let mut kpageflags = KPageFlags::open();
        let available = kpageflags.shows_frames();
        Self { available, kpageflags, buffer: Vec::new() }
    }

    pub(crate) fn is_available(&self) -> bool {
        self.available
    }

    /// Appends the large folios mapped by PTEs in `range`, in order of address.
    pub(crate) fn large_folios(
        &mut self,
        pagemap: &File,
        range: HvaRange,
        out: &mut Vec<LargeFolio>,
    ) -> Result<(), ScanError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut open: Option<(Frames, LargeFolio)> = None;
        self.kpageflags.forget();
        for block in range.block_pieces() {
            read_entries(pagemap, block, &mut buffer)?;
            for (page, entry) in block.pages().zip(entries(&buffer)) {
                let Some(pfn) = entry.pfn() else { continue };
                if let Some((frames, folio)) = &mut open
                    && (frames.head..frames.head + frames.order.pages()).contains(&pfn)
                {
                    folio.pages = folio.pages.hull(page);
                    folio.mapped += 1;
                    continue;
                }
                out.extend(open.take().map(|(_, folio)| folio));
                open = self
                    .kpageflags
                    .folio_of(pfn)
                    .filter(|frames| frames.order > Order::BASE)
                    .map(|frames| (frames, LargeFolio { pages: page, mapped: 1, order: frames.order }));
            }
        }
        out.extend(open.map(|(_, folio)| folio));
        self.buffer = buffer;
        Ok(())
    }
}
