//! The state of each page, by the kernel's page tables: the only source of labels and eviction counts.
//!
//! ```text
//!   PAGEMAP_SCAN (6.7 and later)  ─┐                 ┌─ anonymous: done
//!                                  ├─> runs that tile ┤
//!   pagemap entries + smaps       ─┘    the range     └─ shared: holes asked again of mincore and SEEK_DATA
//! ```
//!
//! Shared memory needs the second question: when shmem swaps a page out the PTE becomes empty, exactly as
//! when the page is merely unmapped, so the page tables alone cannot tell *in the page cache*, *in swap* and
//! *never written* apart. mincore looks the page up behind the empty PTE, and SEEK_DATA counts swapped pages
//! as data.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;

use linux_raw_sys::general::page_region;

use crate::address::{Address, Hva, PAGE_SIZE, PMD_SIZE};
use crate::data_finder::DataFinder;
use crate::entries::EntryReader;
use crate::folios::{FolioReader, LargeFolio};
use crate::range::{HvaRange, RangeError};
use crate::region::Region;
use crate::scan_error::ScanError;
use crate::state::{PageCounts, PageRun, PageState, push_run};
use crate::sys::{self, PAGE_IS_FILE, PAGE_IS_HUGE, PAGE_IS_PFNZERO, PAGE_IS_PRESENT, PAGE_IS_SWAPPED};
use crate::victim::MapLevel;

/// How page tables are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanMethod {
    /// The `PAGEMAP_SCAN` ioctl: exact, and fast over large ranges.
    Scan,
    /// The 8-byte entries of `/proc/self/pagemap`, for kernels before 6.7.
    ///
    /// Limits: an entry does not say whether a PMD maps it. Fully present 2 MiB blocks are taken
    /// as PMD-mapped when `smaps` counts exactly as many huge bytes in their mapping as there are such
    /// blocks; where it counts fewer, none is, because a label must be earned. The zero page is told from
    /// others only as root.
    Entries,
}

/// Reads page state of this process. Keeps its buffers, so that scanning allocates nothing once warm.
#[derive(Debug)]
pub struct PageScanner {
    pagemap: File,
    method: ScanMethod,
    entries: EntryReader,
    folios: FolioReader,
    buffer: Box<[page_region]>,
    incore: Vec<u8>,
    raw: Vec<PageRun>,
    counted: Vec<PageRun>,
}

const ANY: u64 = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
const REPORT: u64 = ANY | PAGE_IS_FILE | PAGE_IS_PFNZERO | PAGE_IS_HUGE;
/// Runs taken from the kernel at a time: the size of its own bounce buffer.
const BATCH: usize = 512;
/// Room for one run.
const NO_PAGES: page_region = page_region { start: 0, end: 0, categories: 0 };

impl PageScanner {
    /// A scanner by the best method this kernel has.
    ///
    /// # Errors
    /// No procfs.
    pub fn new() -> Result<Self, ScanError> {
        match Self::with_method(ScanMethod::Scan) {
            Err(ScanError::NoPagemapScan(_)) => Self::with_method(ScanMethod::Entries),
            scanner => scanner,
        }
    }

    /// A scanner by this method.
    ///
    /// # Errors
    /// No procfs, or a kernel without `PAGEMAP_SCAN` where that was asked for.
    pub fn with_method(method: ScanMethod) -> Result<Self, ScanError> {
        Self::of_pagemap(method, File::open("/proc/self/pagemap"))
    }

    fn of_pagemap(method: ScanMethod, pagemap: io::Result<File>) -> Result<Self, ScanError> {
        let pagemap = pagemap.map_err(ScanError::Open)?;
        if method == ScanMethod::Scan {
            let nothing = HvaRange::empty(Hva::new(0));
            sys::pagemap_scan(&pagemap, nothing, ANY, REPORT, &mut []).map_err(ScanError::NoPagemapScan)?;
        }
        Ok(Self {
            pagemap,
            method,
            entries: EntryReader::new(),
            folios: FolioReader::new(),
            buffer: vec![NO_PAGES; BATCH].into(),
            incore: Vec::new(),
            raw: Vec::new(),
            counted: Vec::new(),
        })
    }

    /// A scanner of another process's page tables, by `PAGEMAP_SCAN`.
    ///
    /// # Errors
    /// A kernel without `PAGEMAP_SCAN`, or a process that we may not look at.
    pub fn of_process(pid: u32) -> Result<Self, ScanError> {
        Self::of_pagemap(ScanMethod::Scan, File::open(format!("/proc/{pid}/pagemap")))
    }

    /// How this scanner reads.
    pub fn method(&self) -> ScanMethod {
        self.method
    }

    /// The page tables over `range`, as merged runs that tile it: `out` is cleared first. Memory without an
    /// entry is [`PageState::Absent`] here; for shared memory [`PageScanner::scan_region`] tells more.
    ///
    /// # Errors
    /// A range off the page grid, or a kernel that refuses.
    pub fn scan(&mut self, range: HvaRange, out: &mut Vec<PageRun>) -> Result<(), ScanError> {
        out.clear();
        if !range.start().is_aligned(PAGE_SIZE) || !range.end().is_aligned(PAGE_SIZE) {
            return Err(ScanError::Unaligned(range));
        }
        match self.method {
            ScanMethod::Scan => self.scan_by_ioctl(range, out),
            ScanMethod::Entries => self.entries.scan(&self.pagemap, range, out),
        }
    }

    fn scan_by_ioctl(&mut self, range: HvaRange, out: &mut Vec<PageRun>) -> Result<(), ScanError> {
        let mut at = range.start();
        while at < range.end() {
            let rest = range_between(at, range.end());
            let (filled, stopped) = sys::pagemap_scan(&self.pagemap, rest, ANY, REPORT, &mut self.buffer)
                .map_err(|source| ScanError::Call { call: "PAGEMAP_SCAN", range: rest, source })?;
            for region in &self.buffer[..filled] {
                let (start, end) = (Hva::new(region.start), Hva::new(region.end));
                push_run(out, range_between(at, start), PageState::Absent);
                push_run(out, range_between(start, end), state_of_categories(region.categories));
                at = end;
            }
            push_run(out, range_between(at, stopped), PageState::Absent);
            at = stopped;
        }
        Ok(())
    }

    /// The state of every page of `range`, which lies in `region`: as [`PageScanner::scan`], and for shared
    /// memory also the state behind empty page-table entries.
    ///
    /// # Errors
    /// A range off the page grid or outside the region, or a kernel that refuses.
    pub fn scan_region(
        &mut self,
        region: &Region,
        range: HvaRange,
        out: &mut Vec<PageRun>,
    ) -> Result<(), ScanError> {
        if !region.range().covers(range) {
            return Err(RangeError::Outside { range, region: region.range() }.into());
        }
        let Some(memfd) = region.memfd() else { return self.scan(range, out) };
        let mut raw = std::mem::take(&mut self.raw);
        let mut finder = DataFinder::of(memfd);
        let scanned =
            self.scan(range, &mut raw).and_then(|()| self.look_behind(region, &mut finder, &raw, out));
        self.raw = raw;
        scanned
    }

    /// Copies `raw`, with each absent run of a shared region asked again.
    fn look_behind(
        &mut self,
        region: &Region,
        finder: &mut DataFinder<BorrowedFd<'_>>,
        raw: &[PageRun],
        out: &mut Vec<PageRun>,
    ) -> Result<(), ScanError> {
        out.clear();
        for run in raw {
            if run.state != PageState::Absent {
                push_run(out, run.range, run.state);
                continue;
            }
            // In pieces, so that the buffer stays small whatever the region's size.
            for piece in run.range.chunks(PMD_SIZE) {
                self.look_behind_piece(region, finder, piece, out)?;
            }
        }
        Ok(())
    }

    fn look_behind_piece(
        &mut self,
        region: &Region,
        finder: &mut DataFinder<BorrowedFd<'_>>,
        piece: HvaRange,
        out: &mut Vec<PageRun>,
    ) -> Result<(), ScanError> {
        self.incore.resize(piece.page_count() as usize, 0);
        let failed = |call, range| move |source| ScanError::Call { call, range, source };
        sys::mincore(piece, &mut self.incore).map_err(failed("mincore", piece))?;
        for (page, incore) in piece.pages().zip(&self.incore) {
            let offset = region.offset_of(page.start()).expect("the piece lies in the region");
            let state = if incore & 1 == 1 {
                PageState::Cached
            } else if finder.is_data(offset).map_err(failed("lseek", page))? {
                PageState::Swapped
            } else {
                PageState::Absent
            };
            push_run(out, page, state);
        }
        Ok(())
    }

    /// How many pages of `range`, which lies in `region`, are in which state.
    pub fn counts(&mut self, region: &Region, range: HvaRange) -> Result<PageCounts, ScanError> {
        let mut runs = std::mem::take(&mut self.counted);
        let counts = self.scan_region(region, range, &mut runs).map(|()| PageCounts::of(&runs));
        self.counted = runs;
        counts
    }

    /// The page-table state of the page that holds `at`, without a buffer: one system call.
    pub fn page(&mut self, at: Hva) -> Result<PageState, ScanError> {
        let page = page_of(at);
        if self.method == ScanMethod::Entries {
            return self.entries.page(&self.pagemap, page);
        }
        let mut found = [NO_PAGES];
        let (filled, _) = sys::pagemap_scan(&self.pagemap, page, ANY, REPORT, &mut found)
            .map_err(|source| ScanError::Call { call: "PAGEMAP_SCAN", range: page, source })?;
        Ok(if filled == 0 { PageState::Absent } else { state_of_categories(found[0].categories) })
    }

    /// Whether folio orders below the PMD can be known here: `/proc/kpageflags` is for root.
    pub fn knows_folios(&self) -> bool {
        self.folios.is_available()
    }

    /// Appends the folios of more than one page that PTEs map in `range`, in order of address. One that goes on beyond the
    /// range is there with the part inside. Reads the flags of every frame, some 80 us for 2 MiB.
    pub fn large_folios(&mut self, range: HvaRange, out: &mut Vec<LargeFolio>) -> Result<(), ScanError> {
        self.folios.large_folios(&self.pagemap, range, out)
    }
}

fn page_of(at: Hva) -> HvaRange {
    HvaRange::with_len(at.align_down(PAGE_SIZE), PAGE_SIZE).expect("user addresses end far below 2^64")
}

/// `[start, end)`, empty if the two are out of order.
fn range_between(start: Hva, end: Hva) -> HvaRange {
    HvaRange::new(start, end).unwrap_or(HvaRange::empty(start))
}

fn state_of_categories(categories: u64) -> PageState {
    if categories & PAGE_IS_PRESENT == 0 {
        return PageState::Swapped;
    }
    let level = if categories & PAGE_IS_HUGE == 0 { MapLevel::Pte } else { MapLevel::Pmd };
    if categories & PAGE_IS_PFNZERO != 0 {
        return PageState::Zero(level);
    }
    PageState::Mapped { level, file: categories & PAGE_IS_FILE != 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn categories_become_states() {
        let present = PAGE_IS_PRESENT;
        let mapped = |level, file| PageState::Mapped { level, file };
        assert_eq!(state_of_categories(PAGE_IS_SWAPPED), PageState::Swapped);
        assert_eq!(state_of_categories(PAGE_IS_SWAPPED | PAGE_IS_HUGE), PageState::Swapped);
        assert_eq!(state_of_categories(present), mapped(MapLevel::Pte, false));
        assert_eq!(state_of_categories(present | PAGE_IS_FILE), mapped(MapLevel::Pte, true));
        assert_eq!(state_of_categories(present | PAGE_IS_HUGE), mapped(MapLevel::Pmd, false));
        assert_eq!(state_of_categories(present | PAGE_IS_PFNZERO), PageState::Zero(MapLevel::Pte));
    }

    #[test]
    fn a_range_off_the_page_grid_is_refused() {
        let mut scanner = PageScanner::new().unwrap();
        let odd = HvaRange::with_len(Hva::new(0x1001), 0x1000).unwrap();
        assert!(matches!(scanner.scan(odd, &mut Vec::new()), Err(ScanError::Unaligned(_))));
    }
}
