//! A little anonymous memory to try things on, unmapped when dropped.

use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::tracefs::last_errno;

/// A page.
pub const PAGE: usize = 4096;
/// A huge page.
pub const HUGE: usize = 2 << 20;

/// Private anonymous memory of this process, aligned to 2 MiB. Nobody holds a reference into it.
#[derive(Debug)]
pub struct Scratch {
    mapped: NonNull<u8>,
    mapped_len: usize,
    start: NonNull<u8>,
    len: usize,
}

impl Scratch {
    /// Maps `len` bytes, none of them resident.
    ///
    /// # Errors
    /// What `mmap` says.
    pub fn new(len: usize) -> Result<Self, Errno> {
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        let mapped_len = len + HUGE;
        // SAFETY: without MAP_FIXED a new mapping cannot touch an existing one.
        let at = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), mapped_len, access, flags) }?;
        let mapped = NonNull::new(at.cast::<u8>()).ok_or(Errno::NOMEM)?;
        let pad = mapped.align_offset(HUGE);
        // SAFETY: the pad is less than HUGE, by which the mapping is longer than `len`.
        let start = unsafe { mapped.add(pad) };
        Ok(Self { mapped, mapped_len, start, len })
    }

    /// Where it begins.
    pub fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// How many bytes it has.
    #[expect(clippy::len_without_is_empty, reason = "it is as long as it was made")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Puts bytes at `offset`.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset.checked_add(bytes.len()).is_some_and(|end| end <= self.len), "within the scratch");
        // SAFETY: the bound was just checked.
        let to = unsafe { self.start.add(offset) };
        // SAFETY: `to` has room for all of `bytes`, which is ordinary memory and does not overlap the mapping.
        unsafe { to.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
    }

    /// The byte at `offset`.
    ///
    /// # Panics
    /// If it is beyond.
    pub fn read(&self, offset: usize) -> u8 {
        assert!(offset < self.len, "within the scratch");
        // SAFETY: the bound was just checked.
        let from = unsafe { self.start.add(offset) };
        // SAFETY: mapped and readable; a guest that writes it meanwhile does so behind the compiler's back.
        unsafe { from.read_volatile() }
    }

    /// Touches every page, so that it is there.
    pub fn populate(&mut self) {
        self.touch_every(PAGE);
    }

    /// Touches one page in every `stride` bytes.
    pub fn touch_every(&mut self, stride: usize) {
        for offset in (0..self.len).step_by(stride) {
            self.write(offset, &[1]);
        }
    }

    /// Advises on the first `len` bytes.
    pub fn advise(&self, len: usize, advice: Advice) -> Result<(), Errno> {
        assert!(len <= self.len, "within the scratch");
        // SAFETY: the range is ours and nobody refers into it.
        unsafe { rustix::mm::madvise(self.start.as_ptr().cast(), len, advice) }
    }

    /// `MADV_COLLAPSE` on all of it, which rustix lacks.
    pub fn collapse(&self) -> Result<(), Errno> {
        // SAFETY: the range is ours and nobody refers into it.
        let done = unsafe { libc::madvise(self.start.as_ptr().cast(), self.len, libc::MADV_COLLAPSE) };
        if done == 0 { Ok(()) } else { Err(last_errno()) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and not used again. It cannot fail for a mapping that exists.
        let _ = unsafe { rustix::mm::munmap(self.mapped.as_ptr().cast(), self.mapped_len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_aligned_and_holds_what_was_written() {
        let mut scratch = Scratch::new(2 * PAGE).unwrap();
        assert_eq!(scratch.address() % HUGE as u64, 0);
        scratch.populate();
        scratch.write(2 * PAGE - 4, b"last");
    }

    #[test]
    #[should_panic(expected = "within the scratch")]
    fn nothing_is_written_beyond_it() {
        Scratch::new(PAGE).unwrap().write(PAGE - 1, b"xy");
    }
}
