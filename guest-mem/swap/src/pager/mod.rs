//! Brings pages back: serves faults.
//!
//! ```text
//!   fault at a page ── its state:
//!     Stored, Zero   a window around it: Store::get, checksums ──> UFFDIO_COPY, ZEROPAGE, or a whole huge page by MOVE
//!     Absent         a window of zeros
//!     Leaving        written to while it was copied out: it stays, and can be written to again
//!     Dropping       later: it is not gone yet
//!     Resident       another handler was faster; or it was discarded without an event, and is zeros now
//!     Lost           the guest must not go on
//! ```
//!
//! Shared memory has a page cache, and a page in it is not missing, though it may be mapped nowhere: the fault is a minor
//! one. Usually the cached page is the page itself (only its mapping was dropped). But a hole in a large folio with an extra
//! reference, which cannot be split, leaves the folio in the cache and zeros in the hole. So a page of state `Stored` that
//! is in the cache is written over there, and mapped.

mod error;
mod returning;

use std::ops::Range;

use error::Obstacle;

use super::Swapper;
use super::fill::Source;
use super::huge::HugeStage;
use super::state::{BLOCK_PAGES, Block, SwapState};
use crate::store::{BufferError, PageBuffer, Slot};
pub use error::{Lost, LostWhy};
use guest_mem::{HvaRange, PAGE_SIZE};
use uffd::{FaultKind, MapAs, PageFault, ResolveError, ResolveKind, Wake};

/// The result of serving a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// This many pages came back from the store, pages of zeros included.
    Returned(u32),
    /// A whole block came back as one huge page.
    Huge,
    /// This many pages of zeros were filled, at their first touch.
    Zeroed(u32),
    /// It was being evicted, and stays.
    Kept,
    /// It was in memory.
    Present,
    /// Not served: the page is being dropped, or a mapping changes. Read events, because a thread waits for that, then serve
    /// the same fault again.
    NotYet,
}

/// Brings pages back, on one thread. Any number of threads serve one [`Swapper`].
#[derive(Debug)]
pub struct Pager<'s> {
    swapper: &'s Swapper,
    buffer: PageBuffer,
    slots: Vec<Slot>,
    /// Memory to put a huge page together in, if this region has them.
    stage: Option<HugeStage>,
}

/// The page of a fault.
struct Wanted {
    /// The number of its block.
    block: usize,
    /// Its place in the block.
    page: usize,
    /// Its number from the start of the region.
    number: u64,
    kind: FaultKind,
    write: bool,
}

impl<'s> Pager<'s> {
    /// A pager with its buffers.
    ///
    /// # Errors
    /// There is no memory for its buffer of 2 MiB.
    pub fn new(swapper: &'s Swapper) -> Result<Self, BufferError> {
        Ok(Self {
            swapper,
            buffer: PageBuffer::new(BLOCK_PAGES)?,
            slots: Vec::with_capacity(BLOCK_PAGES),
            stage: swapper.huge.then(HugeStage::default),
        })
    }

    /// Serves a fault, and wakes the threads that wait for it.
    ///
    /// # Errors
    /// The page is lost. The threads that wait for it are not woken.
    pub fn serve(&mut self, fault: &PageFault) -> Result<Served, Lost> {
        let at = fault.page();
        let place = HvaRange::with_len(at, PAGE_SIZE).and_then(|page| self.swapper.place(page));
        let Some((block, page)) = place else {
            return Err(Lost { at, page: u64::MAX, why: LostWhy::Elsewhere });
        };
        let number = self.swapper.first_page(block) + page.start as u64;
        // Before a thread is woken: a clock that watches from then on counts later uses.
        self.swapper.used.mark(number);
        let wanted = Wanted { block, page: page.start, number, kind: fault.kind, write: fault.write };
        match self.try_serve(&wanted) {
            Ok(served) => Ok(served),
            Err(Obstacle::Later) => Ok(Served::NotYet),
            Err(Obstacle::Lost(why)) => Err(Lost { at, page: number, why }),
        }
    }

    fn try_serve(&mut self, wanted: &Wanted) -> Result<Served, Obstacle> {
        let swapper = self.swapper;
        let mut block = swapper.blocks.lock(wanted.block);
        // A page that comes from the store must not be discarded meanwhile. Always lock in this order.
        let _no_event = if block.state(wanted.page).is_out() {
            drop(block);
            let held_off = swapper.reading.hold_off();
            block = swapper.blocks.lock(wanted.block);
            held_off
        } else {
            None
        };
        match (block.state(wanted.page), wanted.kind) {
            (SwapState::Stored(_) | SwapState::Zero, _) => self.bring_back(&mut block, wanted),
            (SwapState::Absent | SwapState::Resident | SwapState::Leaving(_), FaultKind::Minor) => {
                self.map_cached(&mut block, wanted)
            }
            (SwapState::Absent, _) => self.first_touch(&mut block, wanted),
            (SwapState::Dropping(_), _) => Err(Obstacle::Later),
            (SwapState::Lost, _) => Err(Obstacle::Lost(LostWhy::Before)),
            (SwapState::Leaving(_) | SwapState::Resident, FaultKind::WriteProtect) => {
                self.allow_writes(&mut block, wanted)
            }
            (SwapState::Leaving(_) | SwapState::Resident, FaultKind::Missing) => {
                // In memory, or discarded without an event: then it is zeros, and a claim on it is void.
                let missing = self.zero(self.only(wanted), wanted.write)?;
                if missing {
                    block.set(wanted.page, SwapState::Resident);
                }
                Ok(if missing { Served::Zeroed(1) } else { Served::Present })
            }
        }
    }

    /// The address of the wanted page.
    fn only(&self, wanted: &Wanted) -> HvaRange {
        self.swapper.range_of(wanted.block, &(wanted.page..wanted.page + 1))
    }

    /// The pages of the block to bring back with the wanted one.
    fn around(&self, wanted: &Wanted) -> Range<usize> {
        let first = self.swapper.first_page(wanted.block);
        let around = self.swapper.window.around(wanted.number);
        (around.start - first) as usize..(around.end - first) as usize
    }

    /// Brings the wanted page back, which is out, and others in its window.
    fn bring_back(&mut self, block: &mut Block, wanted: &Wanted) -> Result<Served, Obstacle> {
        let (swapper, page, around) = (self.swapper, wanted.page, self.around(wanted));
        if let Some(returned) = self.return_huge(block, wanted.block)? {
            return Ok(returned);
        }
        if !block.state(page).is_out() {
            // It was among those that moved before an existing page stopped the move.
            return Ok(Served::Returned(1));
        }
        match self.return_pages(block, wanted, around.clone()) {
            // The window is optional: an error of another page in it must not fail the wanted page.
            Err(Obstacle::Lost(_)) if around.len() > 1 && block.state(page).is_out() => {
                self.return_pages(block, wanted, page..page + 1)
            }
            result => result,
        }
        .inspect_err(|obstacle| {
            // A page that the kernel does not take, for lack of memory, is still in the store.
            let of_the_store =
                matches!(obstacle, Obstacle::Lost(LostWhy::Store(_) | LostWhy::Checksum { .. }));
            if let SwapState::Stored(slot) = block.state(page)
                && of_the_store
            {
                block.set(page, SwapState::Lost);
                swapper.store.free(&[slot]);
            }
        })
    }

    /// Takes the write protection from the wanted page, which is resident from now on.
    fn allow_writes(&mut self, block: &mut Block, wanted: &Wanted) -> Result<Served, Obstacle> {
        let swapper = self.swapper;
        let leaving = |block: &Block, page| matches!(block.state(page), SwapState::Leaving(_));
        let kept = leaving(block, wanted.page);
        block.set(wanted.page, SwapState::Resident);
        // A huge page that is watched would come apart if one of its pages alone could be written to.
        let whole =
            swapper.huge && swapper.used.is_watched() && !(0..BLOCK_PAGES).any(|page| leaving(block, page));
        let writable =
            if whole { swapper.range_of(wanted.block, &(0..BLOCK_PAGES)) } else { self.only(wanted) };
        swapper.userfault.write_unprotect(writable, Wake::Yes)?;
        Ok(if kept { Served::Kept } else { Served::Present })
    }

    /// Maps a page that is in the page cache, and the resident pages behind it in the window.
    fn map_cached(&mut self, block: &mut Block, wanted: &Wanted) -> Result<Served, Obstacle> {
        let (swapper, page) = (self.swapper, wanted.page);
        let end_of_window = if swapper.used.is_watched() { page + 1 } else { self.around(wanted).end };
        let leaving = matches!(block.state(page), SwapState::Leaving(_));
        let (end, map_as) = match (leaving, wanted.write) {
            // It may be read on, and the next write must be seen.
            (true, false) => (page + 1, MapAs::WriteProtected),
            (true, true) => (page + 1, MapAs::Writable),
            (false, _) => {
                let resident = |&page: &usize| block.state(page) == SwapState::Resident;
                (page + 1 + (page + 1..end_of_window).take_while(resident).count(), MapAs::Writable)
            }
        };
        if map_as == MapAs::Writable {
            block.set(page, SwapState::Resident);
        }
        match swapper.userfault.continue_(swapper.range_of(wanted.block, &(page..end)), map_as, Wake::Yes) {
            Ok(()) | Err(ResolveError { kind: ResolveKind::Stopped, .. }) => {}
            // Mapped by now, or gone from the cache: the threads fault again.
            Err(ResolveError { kind: ResolveKind::Exists | ResolveKind::Unreadable, .. }) => {
                swapper.userfault.wake(self.only(wanted))?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(if leaving && wanted.write { Served::Kept } else { Served::Present })
    }

    /// Fills pages of a first touch with zeros.
    fn first_touch(&mut self, block: &mut Block, wanted: &Wanted) -> Result<Served, Obstacle> {
        let (page, around) = (wanted.page, self.around(wanted));
        let absent = |page: usize| block.state(page) == SwapState::Absent;
        // The run of absent pages that the wanted one is in.
        let start =
            (around.start..page).rev().find(|&page| !absent(page)).map_or(around.start, |page| page + 1);
        let end = (page..around.end).find(|&page| !absent(page)).unwrap_or(around.end);
        let mut zeroed = start..end;
        let mut result = self.zero(self.swapper.range_of(wanted.block, &zeroed), wanted.write);
        if let Err(error) = &result
            && error.kind != ResolveKind::Changing
        {
            // The window is optional: it may reach over two mappings.
            zeroed = page..page + 1;
            result = self.zero(self.only(wanted), wanted.write);
        }
        result?;
        zeroed.clone().for_each(|page| block.set(page, SwapState::Resident));
        Ok(Served::Zeroed(zeroed.len() as u32))
    }

    /// Fills missing pages of a range with zeros; returns whether any was missing.
    fn zero(&self, range: HvaRange, write: bool) -> Result<bool, ResolveError> {
        let filled = self.swapper.fill(range, if write { Source::Zeros } else { Source::ZeroPage }, &[]);
        filled.result.map(|()| filled.missing)
    }
}
