//! A page as a value: 4096 bytes at a multiple of 4096.

use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::address::PAGE_SIZE;

const BYTES: usize = PAGE_SIZE as usize;

/// The bytes of one base page, aligned as direct I/O and userfaultfd want them. A batch is a `[Page]`: whole
/// pages, aligned, by its type.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4096))]
pub struct Page([u8; BYTES]);

const _: () = assert!(size_of::<Page>() == BYTES && align_of::<Page>() == BYTES);

impl Page {
    /// A page of zeros.
    pub const ZERO: Self = Self([0; BYTES]);

    /// A page of these bytes.
    pub const fn new(bytes: [u8; BYTES]) -> Self {
        Self(bytes)
    }

    /// Pages as the bytes they are made of.
    pub fn bytes(pages: &[Self]) -> &[u8] {
        let len = size_of_val(pages);
        // SAFETY: a Page is 4096 initialised bytes without padding, so the pages are `len` bytes in a row.
        unsafe { std::slice::from_raw_parts(pages.as_ptr().cast(), len) }
    }

    /// Pages as the bytes they are made of.
    pub fn bytes_mut(pages: &mut [Self]) -> &mut [u8] {
        let len = size_of_val(pages);
        // SAFETY: as in `bytes`; any byte is valid in a page, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(pages.as_mut_ptr().cast(), len) }
    }
}

impl Deref for Page {
    type Target = [u8; BYTES];
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Page {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Page({:02x?}..)", &self.0[..8])
    }
}

/// Whether the page holds nothing but zeros. For most other pages the first 128 bytes decide.
pub fn is_zero_page(page: &[u8; BYTES]) -> bool {
    // Blocks of 128 bytes are or-ed as a whole, so that the compiler uses vectors: 44 ns for a page of zeros, 94 ns with an
    // exit at each word.
    let (blocks, _) = page.as_chunks::<128>();
    blocks.iter().all(|block| {
        let (words, _) = block.as_chunks::<8>();
        words.iter().fold(0, |seen, word| seen | u64::from_ne_bytes(*word)) == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_anywhere_is_not_zero() {
        let mut page = Page::ZERO;
        assert!(is_zero_page(&page));
        for bit in 0..BYTES * 8 {
            page[bit / 8] = 1 << (bit % 8);
            assert!(!is_zero_page(&page), "bit {bit}");
            page[bit / 8] = 0;
        }
    }

    #[test]
    fn pages_are_their_bytes_in_order() {
        let mut pages = [Page::ZERO; 2];
        Page::bytes_mut(&mut pages)[4097] = 7;
        assert_eq!(pages[1][1], 7);
        assert_eq!(Page::bytes(&pages).iter().position(|&byte| byte == 7), Some(4097));
        assert_eq!(Page::bytes(&pages).len(), 8192);
    }
}
