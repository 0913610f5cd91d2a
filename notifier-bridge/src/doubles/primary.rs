//! A primary MMU made of numbers: every change gives a page a frame that never was before, so a reader
//! that still uses an old one is caught by its number.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use guest_mem::{Address, Hva, HvaRange, MapLevel, PAGE_SIZE, PAGES_PER_PMD, PMD_SIZE};

use crate::primary::{Frame, Mapping, PrimaryMmu, ResolveError};

/// A frame number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pfn(pub(crate) u64);

impl Frame for Pfn {
    fn from_pfn(pfn: u64) -> Self {
        Self(pfn)
    }
    fn pfn(self) -> u64 {
        self.0
    }
}

struct Tables {
    /// The frame of each page from `start` on.
    frames: Vec<u64>,
    /// Whether each 2 MiB region is mapped by a PMD.
    huge: Vec<bool>,
    /// The next frame number, a multiple of 512.
    next: u64,
}

/// Memory from a 2 MiB aligned `start` on.
pub(crate) struct FakePrimary {
    start: Hva,
    tables: Mutex<Tables>,
    /// The frame of each page again, to be read without a lock from inside an access.
    current: Box<[AtomicU64]>,
}

impl FakePrimary {
    /// `regions` regions of 2 MiB from `start` on, all mapped by PMDs.
    pub(crate) fn new(start: Hva, regions: u64) -> Self {
        assert!(start.is_aligned(PMD_SIZE));
        let count = (regions * PAGES_PER_PMD) as usize;
        let tables =
            Tables { frames: vec![0; count], huge: vec![false; regions as usize], next: PAGES_PER_PMD };
        let current = (0..count).map(|_| AtomicU64::new(0)).collect();
        let this = Self { start, tables: Mutex::new(tables), current };
        (0..regions).for_each(|region| this.collapse(region));
        this
    }

    /// Gives each page of `range` a new frame. A PMD mapping it touches is split.
    pub(crate) fn change(&self, range: HvaRange) {
        let mut tables = self.tables.lock().unwrap();
        for page in range.pages() {
            let index = self.index(page.start());
            tables.huge[index / PAGES_PER_PMD as usize] = false;
            // Numbers keep their place modulo 512, so that a wrong huge mapping would not be refused for
            // its alignment alone.
            let frame = tables.next + index as u64 % PAGES_PER_PMD;
            tables.next += PAGES_PER_PMD;
            tables.frames[index] = frame;
            self.current[index].store(frame, Ordering::SeqCst);
        }
    }

    /// Maps a whole region anew, by a PMD.
    pub(crate) fn collapse(&self, region: u64) {
        let mut tables = self.tables.lock().unwrap();
        for page in 0..PAGES_PER_PMD {
            let index = (region * PAGES_PER_PMD + page) as usize;
            let frame = tables.next + page;
            tables.frames[index] = frame;
            self.current[index].store(frame, Ordering::SeqCst);
        }
        tables.next += PAGES_PER_PMD;
        tables.huge[region as usize] = true;
    }

    /// The frame of the page at `hva` now.
    pub(crate) fn current(&self, hva: Hva) -> Pfn {
        Pfn(self.current[self.index(hva)].load(Ordering::SeqCst))
    }

    fn index(&self, hva: Hva) -> usize {
        (hva.checked_offset_from(self.start).unwrap() / PAGE_SIZE) as usize
    }
}

impl PrimaryMmu for FakePrimary {
    type Frame = Pfn;

    fn resolve(&self, hva: Hva, _write: bool) -> Result<Mapping<Pfn>, ResolveError> {
        let tables = self.tables.lock().unwrap();
        let page = hva.checked_offset_from(self.start).ok_or(ResolveError::Unmapped(hva))? / PAGE_SIZE;
        let frame = *tables.frames.get(page as usize).ok_or(ResolveError::Unmapped(hva))?;
        let huge = tables.huge[(page / PAGES_PER_PMD) as usize];
        let level = if huge { MapLevel::Pmd } else { MapLevel::Pte };
        Ok(Mapping { frame: Pfn(frame), level, writable: true })
    }
}
