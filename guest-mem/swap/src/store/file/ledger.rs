//! Which pages of the file are stored, which are free, and which free ones still take disk.
//!
//! Disk goes back by the chunk of 1 MiB: when its last page is freed a chunk is idle, and when more than
//! [`SPARE`] are, the one idle for longest is to be punched out. So a store whose need swings overwrites blocks
//! that it has, which is cheaper than having them allocated anew.

use std::collections::VecDeque;

use super::extents::Extents;
use super::page::{Extent, FilePage};

/// Pages of a chunk: 1 MiB.
pub(super) const CHUNK: u64 = 256;
/// Chunks that may be idle and keep their disk: 16 MiB.
pub(super) const SPARE: usize = 16;

#[derive(Clone, Copy, Debug, Default)]
struct Chunk {
    /// Pages taken, whether they are written yet or not.
    taken: u16,
    /// One bit for each page that is stored.
    stored: [u64; CHUNK as usize / 64],
    /// Whether it may have disk behind it.
    backed: bool,
}

#[derive(Debug)]
pub(super) struct Ledger {
    extents: Extents,
    /// From the file's start to the last chunk that was ever used.
    chunks: Vec<Chunk>,
    idle: VecDeque<usize>,
    taken: u64,
    stored: u64,
}

/// The disk to give back after pages were freed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Disk {
    /// Nothing.
    Keep,
    /// Give these chunks' back: nothing in them is taken.
    Punch(Vec<Extent>),
    /// Give everything back: no page is taken.
    PunchAll,
}

impl Ledger {
    /// A file of `pages` pages, none of them stored.
    pub(super) fn new(pages: u64) -> Self {
        let (chunks, idle) = (Vec::new(), VecDeque::new());
        Self { extents: Extents::new(pages), chunks, idle, taken: 0, stored: 0 }
    }

    /// Pages stored.
    pub(super) fn stored(&self) -> u64 {
        self.stored
    }

    /// Takes `pages` pages to be written. `None` if there is no room.
    pub(super) fn take(&mut self, pages: u64) -> Option<Vec<Extent>> {
        let taken = self.extents.take(pages)?;
        let last =
            taken.iter().map(|extent| extent.end().number().div_ceil(CHUNK)).max().unwrap_or(0) as usize;
        if last > self.chunks.len() {
            self.chunks.resize(last, Chunk::default());
        }
        for page in taken.iter().flat_map(|extent| extent.each()) {
            let chunk = &mut self.chunks[Self::chunk_of(page)];
            chunk.taken += 1;
            chunk.backed = true;
        }
        self.taken += pages;
        Some(taken)
    }

    /// Counts pages that were taken as stored.
    pub(super) fn keep(&mut self, extents: &[Extent]) {
        for page in extents.iter().flat_map(|extent| extent.each()) {
            let (chunk, word, bit) = Self::place(page);
            self.chunks[chunk].stored[word] |= bit;
            self.stored += 1;
        }
    }

    /// Whether this page is stored. It may be none of the file's.
    pub(super) fn is_stored(&self, page: FilePage) -> bool {
        let (chunk, word, bit) = Self::place(page);
        self.chunks.get(chunk).is_some_and(|chunk| chunk.stored[word] & bit != 0)
    }

    /// Frees pages: those that are not stored are passed over.
    pub(super) fn free(&mut self, pages: impl Iterator<Item = FilePage>) -> Disk {
        // Neighbours go back as one extent.
        let mut run = Extent::EMPTY;
        let before = self.stored;
        for page in pages {
            if !self.is_stored(page) {
                continue;
            }
            let (chunk, word, bit) = Self::place(page);
            self.chunks[chunk].stored[word] &= !bit;
            self.stored -= 1;
            if page == run.end() {
                run.pages += 1;
            } else {
                self.give(run);
                run = Extent { first: page, pages: 1 };
            }
        }
        self.give(run);
        if self.stored == before { Disk::Keep } else { self.disk() }
    }

    /// Gives pages back that were taken and could not be written.
    pub(super) fn abandon(&mut self, extents: Vec<Extent>) -> Disk {
        for extent in extents {
            self.give(extent);
        }
        self.disk()
    }

    fn chunk_of(page: FilePage) -> usize {
        (page.number() / CHUNK) as usize
    }

    /// The chunk of a page, and the word and the bit of it in there.
    fn place(page: FilePage) -> (usize, usize, u64) {
        let within = page.number() % CHUNK;
        (Self::chunk_of(page), (within / 64) as usize, 1 << (within % 64))
    }

    fn give(&mut self, extent: Extent) {
        if extent.pages == 0 {
            return;
        }
        for page in extent.each() {
            let number = Self::chunk_of(page);
            let chunk = &mut self.chunks[number];
            chunk.taken -= 1;
            if chunk.taken == 0 {
                self.idle.push_back(number);
            }
        }
        self.taken -= extent.pages;
        self.extents.give(extent);
    }

    fn disk(&mut self) -> Disk {
        if self.taken == 0 {
            self.idle.clear();
            self.chunks.clear();
            return Disk::PunchAll;
        }
        let mut holes: Vec<Extent> = Vec::new();
        while self.idle.len() > SPARE {
            let Some(number) = self.idle.pop_front() else { break };
            let chunk = &mut self.chunks[number];
            // It may be in use again, or have been idle twice.
            if chunk.taken > 0 || !std::mem::replace(&mut chunk.backed, false) {
                continue;
            }
            let first = FilePage::new(number as u64 * CHUNK);
            match holes.last_mut() {
                Some(hole) if hole.end() == first => hole.pages += CHUNK,
                _ => holes.push(Extent { first, pages: CHUNK }),
            }
        }
        if holes.is_empty() { Disk::Keep } else { Disk::Punch(holes) }
    }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref as one;

    use super::*;

    /// The pages from one number up to another.
    fn extent(first: u64, end: u64) -> Extent {
        Extent::between(FilePage::new(first), FilePage::new(end))
    }

    fn put(ledger: &mut Ledger, pages: u64) -> Vec<Extent> {
        let extents = ledger.take(pages).unwrap();
        ledger.keep(&extents);
        extents
    }

    /// So many chunks, each with only its page 7 stored, and then these idle, of which the disk is kept.
    fn chunks_idle(chunks: u64, idle: impl Iterator<Item = u64>) -> Ledger {
        let mut ledger = Ledger::new(100 * CHUNK);
        assert_eq!(put(&mut ledger, chunks * CHUNK), one(&extent(0, chunks * CHUNK)));
        assert_eq!(
            ledger.free(extent(0, chunks * CHUNK).each().filter(|page| page.number() % CHUNK != 7)),
            Disk::Keep
        );
        for chunk in idle {
            assert_eq!(free_last(&mut ledger, chunk), Disk::Keep);
        }
        ledger
    }

    /// The same, of which the first SPARE are idle.
    fn spare_chunks_idle(chunks: u64) -> Ledger {
        chunks_idle(chunks, 0..SPARE as u64)
    }

    fn free_last(ledger: &mut Ledger, chunk: u64) -> Disk {
        ledger.free(std::iter::once(FilePage::new(chunk * CHUNK + 7)))
    }

    #[test]
    fn disk_goes_back_by_the_chunk_beyond_the_spare_ones() {
        let spare = SPARE as u64;
        let mut ledger = spare_chunks_idle(spare + 4);
        assert_eq!(free_last(&mut ledger, spare), Disk::Punch(one(&extent(0, CHUNK)).to_vec()));
        let both = [spare + 1, spare + 2].map(|chunk| FilePage::new(chunk * CHUNK + 7));
        assert_eq!(ledger.free(both.into_iter()), Disk::Punch(one(&extent(CHUNK, 3 * CHUNK)).to_vec()));
        assert_eq!(
            ledger.free([7, CHUNK + 7, u64::MAX].map(FilePage::new).into_iter()),
            Disk::Keep,
            "not stored, passed over"
        );
        assert_eq!(ledger.stored(), 1);
        assert_eq!(free_last(&mut ledger, spare + 3), Disk::PunchAll);
        assert_eq!(ledger.stored(), 0);
    }

    #[test]
    fn chunks_that_are_no_neighbours_are_two_holes() {
        let spare = SPARE as u64;
        // Idle for longest: chunks 0 and 2.
        let mut ledger = chunks_idle(spare + 4, [0, 2].into_iter().chain(4..spare + 2));
        let both = [spare + 2, spare + 3].map(|chunk| FilePage::new(chunk * CHUNK + 7));
        let holes = vec![extent(0, CHUNK), extent(2 * CHUNK, 3 * CHUNK)];
        assert_eq!(ledger.free(both.into_iter()), Disk::Punch(holes), "what lies between them is stored");
        assert!(ledger.is_stored(FilePage::new(CHUNK + 7)));
    }

    #[test]
    fn an_idle_chunk_that_is_used_again_is_not_punched() {
        let spare = SPARE as u64;
        let mut ledger = spare_chunks_idle(spare + 2);
        // The only run as long is the first, over all the idle chunks.
        let again = extent(0, spare * CHUNK);
        assert_eq!(put(&mut ledger, spare * CHUNK), one(&again));
        assert_eq!(free_last(&mut ledger, spare), Disk::Keep);
        assert!(again.each().all(|page| ledger.is_stored(page)));
        assert_eq!(ledger.stored(), spare * CHUNK + 1);
    }

    #[test]
    fn a_page_that_is_only_taken_is_not_stored_and_holds_its_chunk() {
        let mut ledger = Ledger::new(CHUNK);
        let kept = put(&mut ledger, 3);
        let taken = ledger.take(5).unwrap();
        assert!(ledger.is_stored(FilePage::new(2)) && !ledger.is_stored(FilePage::new(3)));
        assert_eq!(ledger.free(extent(0, 8).each()), Disk::Keep, "five are still being written");
        assert_eq!(ledger.abandon(taken), Disk::PunchAll);
        assert_eq!(kept, ledger.take(3).unwrap());
        assert!(ledger.take(CHUNK).is_none());
    }
}
