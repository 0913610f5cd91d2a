//! Folios below the PMD, read from the flags of their page frames. For root only: the kernel shows frames to
//! nobody else.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::address::{Address, Hva, PAGE_SIZE, PAGES_PER_PMD};
use crate::entries::{Entry, block_pieces, entries, read_entries};
use crate::pagemap::ScanError;
use crate::range::HvaRange;
use crate::victim::Order;

const KPF_COMPOUND_HEAD: u64 = 1 << 15;
const KPF_COMPOUND_TAIL: u64 = 1 << 16;
const KPF_ZERO_PAGE: u64 = 1 << 24;

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

/// A folio by its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frames {
    head: u64,
    pub(crate) order: Order,
}

/// `/proc/kpageflags`, or nothing.
#[derive(Debug)]
pub(crate) struct KPageFlags {
    file: Option<File>,
    /// The flags of 512 frames, from `block` on: the largest folio of interest, so one look is enough.
    flags: Box<[u8]>,
    /// Which frame `flags` begins at, and how many bytes of it are there.
    block: Option<(u64, usize)>,
}

impl KPageFlags {
    pub(crate) fn open() -> Self {
        let flags = vec![0; PAGES_PER_PMD as usize * 8].into();
        Self { file: File::open("/proc/kpageflags").ok(), flags, block: None }
    }

    /// Whether frames and their flags can be read: without CAP_SYS_ADMIN the flags may open, but every frame reads as 0.
    fn shows_frames(&mut self) -> bool {
        let on_stack = 0u8;
        let page = HvaRange::with_len(Hva::of(&raw const on_stack).align_down(PAGE_SIZE), PAGE_SIZE);
        let frame = || {
            let (pagemap, mut entry) = (File::open("/proc/self/pagemap").ok()?, Vec::new());
            read_entries(&pagemap, page?, &mut entry).ok()?;
            entries(&entry).next()?.pfn()
        };
        self.file.is_some() && frame().is_some_and(|frame| self.folio_of(frame).is_some())
    }

    pub(crate) fn is_zero_page(&self, pfn: u64) -> bool {
        let mut flags = [0; 8];
        let Some(file) = &self.file else { return false };
        file.read_exact_at(&mut flags, pfn * 8).is_ok() && u64::from_ne_bytes(flags) & KPF_ZERO_PAGE != 0
    }

    /// Forgets flags read before: a folio may be split at any time.
    fn forget(&mut self) {
        self.block = None;
    }

    /// The flags of the block that holds a frame, and the frame it begins at.
    fn block_of(&mut self, pfn: u64) -> Option<(u64, &[u8])> {
        let first = pfn - pfn % PAGES_PER_PMD;
        let read = match self.block {
            Some((block, read)) if block == first => read,
            // Memory may end inside the last block.
            _ => self.file.as_ref()?.read_at(&mut self.flags, first * 8).ok()?,
        };
        self.block = Some((first, read));
        Some((first, &self.flags[..read]))
    }

    /// The folio that holds a frame.
    fn folio_of(&mut self, pfn: u64) -> Option<Frames> {
        let (first, bytes) = self.block_of(pfn)?;
        let flags =
            |index: usize| bytes.as_chunks::<8>().0.get(index).map(|bytes| u64::from_ne_bytes(*bytes));
        let (head, order) = folio_in_block((pfn - first) as usize, flags)?;
        Some(Frames { head: first + head as u64, order })
    }
}

/// Finds the folio around `index` in a block of flags: back to its head, then on over its tails.
fn folio_in_block(index: usize, flags: impl Fn(usize) -> Option<u64>) -> Option<(usize, Order)> {
    if flags(index)? & (KPF_COMPOUND_HEAD | KPF_COMPOUND_TAIL) == 0 {
        return Some((index, Order::BASE));
    }
    let mut head = index;
    while flags(head)? & KPF_COMPOUND_TAIL != 0 {
        head = head.checked_sub(1)?;
    }
    let tails = (head + 1..).take_while(|&at| flags(at).is_some_and(|f| f & KPF_COMPOUND_TAIL != 0)).count();
    let pages = tails as u64 + 1;
    // Anything but a power of two was split while we looked.
    let order = pages.is_power_of_two().then(|| Order::new(pages.trailing_zeros() as u8))??;
    Some((head, order))
}

/// Reads folios through this process's pagemap.
#[derive(Debug)]
pub(crate) struct FolioReader {
    pagemap: File,
    kpageflags: KPageFlags,
    buffer: Vec<u8>,
    available: bool,
}

impl FolioReader {
    /// A reader of the process whose `pagemap` it is.
    pub(crate) fn new(pagemap: File) -> Self {
        let mut kpageflags = KPageFlags::open();
        let available = kpageflags.shows_frames();
        Self { pagemap, available, kpageflags, buffer: Vec::new() }
    }

    pub(crate) fn is_available(&self) -> bool {
        self.available
    }

    /// The folio of one mapped page; `None` if nothing is mapped or frames are hidden.
    pub(crate) fn folio_at(&mut self, page: HvaRange) -> Result<Option<Frames>, ScanError> {
        read_entries(&self.pagemap, page, &mut self.buffer)?;
        let entry = entries(&self.buffer).next().unwrap_or(Entry(0));
        self.kpageflags.forget();
        Ok(entry.pfn().and_then(|pfn| self.kpageflags.folio_of(pfn)))
    }

    /// Appends the large folios mapped by PTEs in `range`, in order of address.
    pub(crate) fn large_folios(
        &mut self,
        range: HvaRange,
        out: &mut Vec<LargeFolio>,
    ) -> Result<(), ScanError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut open: Option<(Frames, LargeFolio)> = None;
        self.kpageflags.forget();
        for block in block_pieces(range) {
            read_entries(&self.pagemap, block, &mut buffer)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folio_is_a_head_and_its_tails() {
        const H: u64 = KPF_COMPOUND_HEAD;
        const T: u64 = KPF_COMPOUND_TAIL;
        let block = [0, 0, H, T, H, T, T, T, 0, T];
        let at = |index| folio_in_block(index, |at| block.get(at).copied());
        let order = |order| Order::new(order).unwrap();
        assert_eq!(at(0), Some((0, Order::BASE)));
        assert_eq!(at(2), Some((2, order(1))));
        assert_eq!(at(3), Some((2, order(1))));
        assert_eq!(at(6), Some((4, order(2))));
        assert_eq!(at(99), None);
    }

    #[test]
    fn a_folio_caught_in_a_split_is_unknown() {
        let block = [KPF_COMPOUND_HEAD, KPF_COMPOUND_TAIL, KPF_COMPOUND_TAIL, 0];
        assert_eq!(folio_in_block(0, |at| block.get(at).copied()), None);
        assert_eq!(folio_in_block(0, |_| Some(KPF_COMPOUND_TAIL)), None);
    }
}
