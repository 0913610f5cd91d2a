//! `/proc/kpageflags`: the kind of page in each frame.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::address::{Address, Hva, PAGE_SIZE, PAGES_PER_PMD};
use crate::entry::{entries, read_entries};
use crate::range::HvaRange;
use crate::victim::Order;

const KPF_COMPOUND_HEAD: u64 = 1 << 15;
const KPF_COMPOUND_TAIL: u64 = 1 << 16;
const KPF_ZERO_PAGE: u64 = 1 << 24;

/// A folio by its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frames {
    pub(crate) head: u64,
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
    pub(crate) fn shows_frames(&mut self) -> bool {
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
    pub(crate) fn forget(&mut self) {
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
    pub(crate) fn folio_of(&mut self, pfn: u64) -> Option<Frames> {
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
