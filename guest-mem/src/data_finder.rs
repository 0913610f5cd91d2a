//! Where a file has data and where it has holes, asked page by page in order of offset.
//!
//! | question | cost |
//! | --- | --- |
//! | SEEK_DATA at a page with data | one page is looked at |
//! | SEEK_DATA in a hole | a look at every page up to the next data; the whole hole is known then |
//! | SEEK_HOLE at a page with data | a look at every page up to the next hole, which is mostly the end of the file: as much as some hundred of the first |
//!
//! So the end of data is asked for only after many pages were asked one by one: a few swapped pages of a large memory cost
//! a question each, and a memory that is swapped as a whole costs one more.

use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::address::PAGE_SIZE;

/// Pages of data that are asked one by one, before the end of the data is asked for.
const ONE_BY_ONE: u32 = 64;

/// A file that can be asked.
pub(crate) trait Seek {
    /// The first data at or after an offset, in memory or in swap; `None` if there is none.
    fn data(&self, offset: u64) -> Result<Option<u64>, Errno>;
    /// The first hole at or after an offset: at the latest the end of the file.
    fn hole(&self, offset: u64) -> Result<u64, Errno>;
}

impl Seek for BorrowedFd<'_> {
    fn data(&self, offset: u64) -> Result<Option<u64>, Errno> {
        match rustix::fs::seek(self, SeekFrom::Data(offset)) {
            Ok(at) => Ok(Some(at)),
            Err(Errno::NXIO) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
    fn hole(&self, offset: u64) -> Result<u64, Errno> {
        rustix::fs::seek(self, SeekFrom::Hole(offset))
    }
}

/// The last extent found in a file. Valid as long as the file is not changed.
#[derive(Debug)]
pub(crate) struct DataFinder<F> {
    file: F,
    /// The last extent, and whether it is data.
    last: Option<(Range<u64>, bool)>,
    /// Pages of data that may still be asked one by one.
    one_by_one: u32,
}

impl<F: Seek> DataFinder<F> {
    /// A finder without an extent.
    pub(crate) fn of(file: F) -> Self {
        Self { file, last: None, one_by_one: ONE_BY_ONE }
    }

    /// Whether there is data at the page at `offset`.
    pub(crate) fn is_data(&mut self, offset: u64) -> Result<bool, Errno> {
        if let Some((extent, is_data)) = &self.last
            && extent.contains(&offset)
        {
            return Ok(*is_data);
        }
        let (extent, is_data) = match self.file.data(offset)? {
            None => (offset..u64::MAX, false),
            Some(data) if data > offset => (offset..data, false),
            Some(_) if self.one_by_one > 0 => {
                self.one_by_one -= 1;
                (offset..offset + PAGE_SIZE, true)
            }
            Some(_) => (offset..self.file.hole(offset)?, true),
        };
        self.last = Some((extent, is_data));
        Ok(is_data)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    /// A file by what each of its pages has. Counts the pages that a real one would look at, beyond the first.
    #[derive(Default)]
    struct Pages {
        pages: Vec<bool>,
        asked: Cell<u64>,
        walked: Cell<u64>,
    }

    impl Pages {
        fn next(&self, offset: u64, wanted: bool) -> Option<u64> {
            self.asked.set(self.asked.get() + 1);
            let first = (offset / PAGE_SIZE) as usize;
            let found = self.pages.iter().skip(first).position(|data| *data == wanted);
            let walked = found.unwrap_or(self.pages.len() - first) as u64;
            self.walked.set(self.walked.get() + walked);
            found.map(|after| offset + after as u64 * PAGE_SIZE)
        }
    }

    impl Seek for &Pages {
        fn data(&self, offset: u64) -> Result<Option<u64>, Errno> {
            Ok(self.next(offset, true))
        }
        fn hole(&self, offset: u64) -> Result<u64, Errno> {
            Ok(self.next(offset, false).unwrap_or(self.pages.len() as u64 * PAGE_SIZE))
        }
    }

    fn data(pages: usize) -> Pages {
        Pages { pages: vec![true; pages], ..Pages::default() }
    }

    #[test]
    fn a_few_pages_of_a_large_file_are_not_searched_to_its_end() {
        let file = data(1 << 18);
        let mut finder = DataFinder::of(&file);
        for page in (0..512).step_by(11) {
            assert_eq!(finder.is_data(page * PAGE_SIZE), Ok(true));
        }
        assert_eq!((file.asked.get(), file.walked.get()), (47, 0));
    }

    #[test]
    fn all_pages_of_a_large_file_are_not_asked_one_by_one() {
        let file = data(1 << 14);
        let mut finder = DataFinder::of(&file);
        assert!((0..1 << 14).all(|page| finder.is_data(page * PAGE_SIZE) == Ok(true)));
        assert_eq!(file.asked.get(), u64::from(ONE_BY_ONE) + 2);
    }

    #[test]
    fn a_hole_is_walked_once() {
        let file = Pages { pages: vec![false; 1 << 14], ..Pages::default() };
        let mut finder = DataFinder::of(&file);
        assert!((0..1 << 14).all(|page| finder.is_data(page * PAGE_SIZE) == Ok(false)));
        assert_eq!(file.asked.get(), 1);
    }

    proptest! {
        #[test]
        fn every_page_is_what_it_is(
            runs in prop::collection::vec((any::<bool>(), 1_usize..200), 1..20),
            asked in prop::collection::vec(any::<bool>(), 4000),
        ) {
            let pages: Vec<bool> = runs.iter().flat_map(|&(data, times)| vec![data; times]).collect();
            let file = Pages { pages: pages.clone(), ..Pages::default() };
            let mut finder = DataFinder::of(&file);
            for (page, data) in pages.iter().enumerate().filter(|(page, _)| asked[*page]) {
                prop_assert_eq!(finder.is_data(page as u64 * PAGE_SIZE), Ok(*data), "page {}", page);
            }
        }
    }
}
