//! A mapping of anonymous memory.

use guest_mem::{Address, HvaRange};
use rustix::io::Errno;
use rustix::mm::Advice;

use crate::sys;

/// A private, anonymous, readable and writable mapping, unmapped when dropped. Pages that were never written are zero and
/// take no memory. Of 2 MiB or more it begins at a multiple of 2 MiB.
#[derive(Debug)]
pub(super) struct Mapping {
    range: HvaRange,
}

impl Mapping {
    /// Maps `len` bytes, a multiple of 4096 that is not 0.
    pub(super) fn new(len: u64) -> Result<Self, Errno> {
        // Aligning it takes 2 MiB more for a moment; no address space is that large.
        if len == 0 || len > 1 << 47 {
            return Err(Errno::NOMEM);
        }
        Ok(Self { range: sys::map(len)? })
    }

    /// Bytes mapped.
    pub(super) fn len(&self) -> usize {
        self.range.len() as usize
    }

    /// The first byte. All [`len`](Self::len) bytes are mapped and initialised for as long as `self` lives.
    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.range.start().as_ptr()
    }

    /// Its addresses.
    #[cfg(test)]
    pub(super) fn range(&self) -> HvaRange {
        self.range
    }

    fn part(&self, offset: u64, len: u64) -> HvaRange {
        let part = self.range.start().checked_add(offset).and_then(|start| HvaRange::with_len(start, len));
        part.filter(|part| part.end() <= self.range.end()).expect("within the mapping")
    }

    /// Has the kernel fill `len` bytes at `offset` with pages at once, which costs a fraction of as many faults.
    /// Where the kernel cannot (before 5.14) nothing happens, and the faults come one by one.
    pub(super) fn populate(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.advise_if_known(offset, len, Advice::LinuxPopulateWrite)
    }

    /// The same for reading: pages that were never written become the kernel's zero page, which takes no memory.
    pub(super) fn populate_for_reading(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.advise_if_known(offset, len, Advice::LinuxPopulateRead)
    }

    /// Says whether the kernel may use huge pages for `len` bytes at `offset`. One without them never does.
    pub(super) fn huge_pages(&self, offset: u64, len: u64, wanted: bool) -> Result<(), Errno> {
        let advice = if wanted { Advice::LinuxHugepage } else { Advice::LinuxNoHugepage };
        self.advise_if_known(offset, len, advice)
    }

    fn advise_if_known(&self, offset: u64, len: u64, advice: Advice) -> Result<(), Errno> {
        // SAFETY: the range is within our mapping, and populating keeps what is there.
        match unsafe { sys::advise(self.part(offset, len), advice) } {
            Err(Errno::INVAL) => Ok(()),
            other => other,
        }
    }

    /// Gives the pages of `len` bytes at `offset` back to the kernel: they read as zeros from now on.
    ///
    /// # Safety
    /// Nobody holds a reference into those bytes.
    pub(super) unsafe fn give_back(&self, offset: u64, len: u64) -> Result<(), Errno> {
        // SAFETY: the range is within our mapping; that nobody refers to it is the caller's word.
        unsafe { sys::advise(self.part(offset, len), Advice::LinuxDontNeed) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and ends with us. Failure leaks address space and harms nothing.
        let _ = unsafe { sys::unmap(self.range) };
    }
}
