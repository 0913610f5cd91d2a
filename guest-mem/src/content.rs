//! Whole pages in and out of a region while no vCPU runs: how a snapshot is written, and read in one go.

use rustix::io::Errno;

use crate::address::{Hva, PAGE_SIZE};
use crate::page::Page;
use crate::range::{HvaRange, RangeError};
use crate::region::{Region, RegionError};
use crate::remedy::{self, Asked};
use crate::sys;

/// Pages could not be read or written.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum ContentError {
    #[error(transparent)]
    Region(#[from] RegionError),
    #[error("reading {range} of guest memory{}", remedy::after(Asked::Content, *source))]
    Read { range: HvaRange, source: Errno },
}

impl Region {
    /// Copies the pages from `at` on into `to`. A page that was never touched is zeros. Of memory that is written to
    /// meanwhile the copy is torn.
    ///
    /// # Errors
    /// Pages beyond the region, or the kernel cannot read one.
    pub fn read_pages(&self, at: Hva, to: &mut [Page]) -> Result<(), ContentError> {
        let range = self.pages_from(at, to.len())?;
        // The copy below would fail with EFAULT, without the limit.
        self.reach(range)?;
        let mut done = 0;
        while done < range.len() {
            let rest = HvaRange::new(hva_after(range.start(), done), range.end()).expect("inside the range");
            let copied = sys::copy_out(rest, &mut Page::bytes_mut(to)[done as usize..]);
            match copied.map_err(|source| ContentError::Read { range: rest, source })? {
                0 => return Err(ContentError::Read { range: rest, source: Errno::FAULT }),
                bytes => done += bytes as u64,
            }
        }
        Ok(())
    }

    /// Copies a range of the region into `to`, which is as long, and returns how many bytes came before the first page that
    /// could not be read. The kernel copies: a missing page is an error, or waits for the handler of a userfaultfd, and this
    /// thread takes no fault.
    ///
    /// # Errors
    /// The first page cannot be read.
    ///
    /// # Panics
    /// The lengths differ.
    pub fn copy_out(&self, range: HvaRange, to: &mut [u8]) -> Result<usize, Errno> {
        debug_assert!(self.range().covers(range), "{range} of {}", self.range());
        sys::copy_out(range, to)
    }

    /// Writes pages from `at` on, word by word. No vCPU runs yet, or none that may see half of it.
    ///
    /// # Errors
    /// Pages beyond the region, or the kernel gives no memory for them.
    pub fn write_pages(&self, at: Hva, pages: &[Page]) -> Result<(), ContentError> {
        let range = self.pages_from(at, pages.len())?;
        self.reach(range)?;
        let (words, _) = Page::bytes(pages).as_chunks::<8>();
        for (word, offset) in words.iter().zip((0..range.len()).step_by(8)) {
            // SAFETY: an aligned word of this mapping, which lives as long as `self` and may be written to.
            unsafe { sys::write_word(hva_after(range.start(), offset), u64::from_ne_bytes(*word)) };
        }
        Ok(())
    }

    fn pages_from(&self, at: Hva, pages: usize) -> Result<HvaRange, RegionError> {
        let len = (pages as u64).saturating_mul(PAGE_SIZE);
        let outside = RangeError::Outside { range: HvaRange::empty(at), region: self.range() };
        let range = HvaRange::with_len(at, len).ok_or(outside)?;
        self.check_content(range)?;
        Ok(range)
    }
}

fn hva_after(start: Hva, offset: u64) -> Hva {
    Hva::new(start.get() + offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::PMD_SIZE;
    use crate::backing::Backing;

    #[test]
    fn pages_go_in_and_come_out() {
        for backing in [Backing::Base4k, Backing::Memfd] {
            let region = Region::map(PMD_SIZE, backing).unwrap();
            let pages: Vec<Page> = (1..4).map(|byte| Page::new([byte; 4096])).collect();
            let at = region.hva_at(5 * PAGE_SIZE).unwrap();
            region.write_pages(at, &pages).unwrap();
            let mut back = vec![Page::new([9; 4096]); 5];
            region.read_pages(region.hva_at(4 * PAGE_SIZE).unwrap(), &mut back).unwrap();
            assert!(back[1..4] == pages && back[0] == Page::ZERO && back[4] == Page::ZERO);
        }
    }

    #[test]
    fn pages_beyond_the_end_are_refused() {
        let region = Region::map(PMD_SIZE, Backing::Base4k).unwrap();
        let last = region.hva_at(PMD_SIZE - PAGE_SIZE).unwrap();
        for at in [last, region.range().end(), Hva::new(u64::MAX - 4095), Hva::new(last.get() - 8)] {
            assert!(region.write_pages(at, &[Page::ZERO; 2]).is_err(), "{at}");
            assert!(region.read_pages(at, &mut [Page::ZERO; 2]).is_err(), "{at}");
        }
        region.write_pages(last, &[Page::ZERO]).unwrap();
    }
}
