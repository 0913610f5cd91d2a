//! Mappings at multiples of 2 MiB.

use rustix::io::Errno;
use rustix::mm::Advice;

use crate::address::{Address, PMD_SIZE};
use crate::range::HvaRange;
use crate::sys::{self, Content, Madvise};

/// A readable and writable mapping at a multiple of 2 MiB, unmapped when dropped. Pages of anonymous memory that were
/// never written are zero and take no memory.
#[derive(Debug)]
pub struct Mapping {
    range: HvaRange,
}

impl Mapping {
    /// Maps `len` bytes of private, anonymous memory: a multiple of 4096 that is not 0.
    ///
    /// # Errors
    /// No such address space.
    pub fn anonymous(len: u64) -> Result<Self, Errno> {
        // Aligning it takes 4 MiB more for a moment; no address space is that large.
        if len == 0 || len > 1 << 47 {
            return Err(Errno::NOMEM);
        }
        Reservation::of(len)?.map(Content::Anonymous)
    }

    /// Its addresses.
    pub fn range(&self) -> HvaRange {
        self.range
    }

    /// The first byte. All bytes of the range are mapped and initialised for as long as `self` lives.
    pub fn as_ptr(&self) -> *mut u8 {
        self.range.start().as_ptr()
    }

    /// Has the kernel fill `len` bytes at `offset` with pages at once, which costs a fraction of as many faults.
    /// Where the kernel cannot (before 5.14) nothing happens, and the faults come one by one.
    ///
    /// # Errors
    /// No memory.
    pub fn populate(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.advise_if_known(offset, len, Advice::LinuxPopulateWrite)
    }

    /// The same for reading: pages that were never written become the kernel's zero page, which takes no memory.
    ///
    /// # Errors
    /// No memory.
    pub fn populate_for_reading(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.advise_if_known(offset, len, Advice::LinuxPopulateRead)
    }

    /// Says whether the kernel may use huge pages for `len` bytes at `offset`. A kernel without them never does.
    ///
    /// # Errors
    /// The process would have too many mappings.
    pub fn huge_pages(&self, offset: u64, len: u64, wanted: bool) -> Result<(), Errno> {
        let advice = if wanted { Advice::LinuxHugepage } else { Advice::LinuxNoHugepage };
        self.advise_if_known(offset, len, advice)
    }

    fn advise_if_known(&self, offset: u64, len: u64, advice: Advice) -> Result<(), Errno> {
        // SAFETY: the range is within our mapping, and these advices discard nothing.
        match unsafe { sys::madvise(self.part(offset, len), Madvise::Known(advice)) } {
            Err(Errno::INVAL) => Ok(()),
            other => other,
        }
    }

    /// Gives the pages of `len` bytes at `offset` back to the kernel: they read as zeros from now on.
    ///
    /// # Errors
    /// They are locked in memory.
    ///
    /// # Safety
    /// There is no reference into those bytes.
    pub unsafe fn give_back(&self, offset: u64, len: u64) -> Result<(), Errno> {
        // SAFETY: the range is within our mapping; that there is no reference is the caller's word.
        unsafe { sys::madvise(self.part(offset, len), Madvise::Known(Advice::LinuxDontNeed)) }
    }

    fn part(&self, offset: u64, len: u64) -> HvaRange {
        let part = self.range.start().checked_add(offset).and_then(|start| HvaRange::with_len(start, len));
        part.filter(|part| part.end() <= self.range.end()).expect("within the mapping")
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // It fails where the kernel would have to split a VMA and the process has `vm.max_map_count` of them: that costs
        // address space, and harms nothing.
        // SAFETY: the mapping is ours, and with `self` the last safe way into it goes.
        let _ = unsafe { sys::munmap(self.range) };
    }
}

/// Address space at a multiple of 2 MiB that holds nothing yet, given back when dropped.
#[derive(Debug)]
pub(crate) struct Reservation(Mapping);

impl Reservation {
    /// Reserves `len` bytes, a multiple of 4096.
    pub fn of(len: u64) -> Result<Self, Errno> {
        reserve_congruent(len, 0).map(|range| Self(Mapping { range }))
    }

    /// Maps memory over it.
    pub fn map(self, content: Content<'_>) -> Result<Mapping, Errno> {
        let Self(mapping) = self;
        // SAFETY: the reservation is ours, and holds nothing yet.
        unsafe { sys::map_over(mapping.range, content) }?;
        Ok(mapping)
    }
}

/// Reserves `len` bytes whose address is `offset` modulo 2 MiB. Both are page aligned.
pub(crate) fn reserve_congruent(len: u64, offset: u64) -> Result<HvaRange, Errno> {
    let wide = sys::reserve((len + 2 * PMD_SIZE) as usize)?;
    let block = wide.start().checked_align_up(PMD_SIZE).ok_or(Errno::NOMEM)?;
    let range =
        block.checked_add(offset).and_then(|start| HvaRange::with_len(start, len)).ok_or(Errno::NOMEM)?;
    let outside = [HvaRange::new(wide.start(), range.start()), HvaRange::new(range.end(), wide.end())];
    for end in outside.into_iter().flatten() {
        // SAFETY: part of the reservation, which is ours and holds nothing.
        unsafe { sys::munmap(end) }?;
    }
    Ok(range)
}
