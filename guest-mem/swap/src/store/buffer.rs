//! An owned buffer of pages, for batches on their way into a store or out of one.

use std::ops::{Deref, DerefMut};

use guest_mem::remedy::{self, Asked};
use guest_mem::{Mapping, PAGE_SIZE, Page};
use rustix::io::Errno;

/// There is no memory for a buffer.
#[derive(Debug, thiserror::Error)]
#[error("no buffer of {pages} pages{}", remedy::after(Asked::AddressSpace, *source))]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub struct BufferError {
    pub pages: usize,
    pub source: Errno,
}

/// Pages in memory of their own, all zero at first: a `[Page]` that begins at a multiple of 2 MiB. Pages that were
/// never written take no memory.
#[derive(Debug)]
pub struct PageBuffer {
    mapping: Mapping,
}

impl PageBuffer {
    /// A buffer of `pages` pages, at least one.
    ///
    /// # Errors
    /// No such address space, or no pages asked for.
    pub fn new(pages: usize) -> Result<Self, BufferError> {
        let failed = |source| BufferError { pages, source };
        if pages == 0 {
            return Err(failed(Errno::INVAL));
        }
        let len = (pages as u64).checked_mul(PAGE_SIZE).ok_or_else(|| failed(Errno::NOMEM))?;
        Ok(Self { mapping: Mapping::anonymous(len).map_err(failed)? })
    }

    /// A buffer of `pages` zeros to be read: all of them the kernel's one page of zeros as long as none is written, so it
    /// takes no memory, and copying from it reads 4 KiB over and over.
    pub fn zeros(pages: usize) -> Result<Self, BufferError> {
        let buffer = Self::new(pages)?;
        let populated = buffer.mapping.populate_for_reading(0, buffer.mapping.range().len());
        populated.map_err(|source| BufferError { pages, source })?;
        Ok(buffer)
    }

    /// All of it as bytes.
    pub fn bytes(&self) -> &[u8] {
        Page::bytes(self)
    }

    /// All of it as bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        Page::bytes_mut(self)
    }
}

impl Deref for PageBuffer {
    type Target = [Page];
    fn deref(&self) -> &[Page] {
        let pages = self.mapping.range().len() as usize / size_of::<Page>();
        // SAFETY: the mapping is page aligned, initialised (zeros until written), lives as long as `self`, and
        // only `self` refers to it, so the borrow of `self` is the borrow of the bytes.
        unsafe { std::slice::from_raw_parts(self.mapping.as_ptr().cast(), pages) }
    }
}

impl DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [Page] {
        let pages = self.mapping.range().len() as usize / size_of::<Page>();
        // SAFETY: as in `deref`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.as_ptr().cast(), pages) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_mem::{Address, Hva, PAGES_PER_PMD, PMD_SIZE};

    #[test]
    fn a_buffer_is_aligned_zero_and_writable_to_its_end() {
        for pages in [1, 3, PAGES_PER_PMD as usize, 1025] {
            let mut buffer = PageBuffer::new(pages).unwrap();
            assert_eq!((buffer.len(), buffer.bytes().len()), (pages, pages * 4096));
            assert!(buffer.bytes().iter().all(|&byte| byte == 0));
            buffer.bytes_mut().fill(0xa5);
            assert_eq!(buffer[pages - 1][4095], 0xa5);
            let align = if pages >= 512 { PMD_SIZE } else { PAGE_SIZE };
            assert!(Hva::of(buffer.as_ptr()).is_aligned(align), "{pages} pages");
        }
    }

    #[test]
    fn impossible_buffers_are_refused() {
        assert_eq!(PageBuffer::new(0).unwrap_err().source, Errno::INVAL);
        assert_eq!(PageBuffer::new(usize::MAX).unwrap_err().source, Errno::NOMEM);
        assert_eq!(PageBuffer::new(1 << 50).unwrap_err().source, Errno::NOMEM);
    }
}
