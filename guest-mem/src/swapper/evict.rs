//! Pages on their way out.
//!
//! ```text
//!   Evictor::claim(range) ─── Resident -> Leaving, write-protected
//!     └─ Claimed::store() ─── copied out, checksum, zero or Store::put     the guest reads on; a write keeps its page
//!          └─ Packed::drop_pages() ── Leaving -> Stored | Zero, dropped    those that were written to stay
//! ```
//!
//! Three steps and not one, because two of them take translations from secondary MMUs (write protection, and the drop):
//! whoever announces invalidations puts a bracket around each. A step that is not followed by the next undoes itself.

use std::ops::Range;
use std::sync::RwLockReadGuard;

use rustix::io::Errno;

use super::fate::{BLOCK_PAGES, Block, Fate, Then};
use super::runs::runs;
use super::{Swapper, blocks_of};
use crate::address::PAGE_SIZE;
use crate::range::HvaRange;
use crate::reclaim::{Operation, ReclaimError, perform_unmeasured};
use crate::region::RangeError;
use crate::store::{BufferError, Page, PageBuffer, Slot, StoreError, checksum, is_zero_page};
use crate::sys;
use crate::uffd::{ResolveError, ResolveKind, Wake};

/// Why pages could not be evicted. They are where they were, and can be written to; of a [`EvictError::Drop`] some may be
/// out, and come back like any other.
#[derive(Debug, thiserror::Error)]
pub enum EvictError {
    /// The range does not fit the region.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The range reaches over a 2 MiB boundary.
    #[error("{0} is in more than one 2 MiB block: evict it block by block")]
    Blocks(HvaRange),
    /// The kernel refused to change the write protection.
    #[error("evicting {range}")]
    Protect {
        /// Of what.
        range: HvaRange,
        /// Why.
        #[source]
        source: ResolveError,
    },
    /// The pages could not be read.
    #[error("copying {range} out")]
    Copy {
        /// Of what.
        range: HvaRange,
        /// Why.
        #[source]
        source: Errno,
    },
    /// The store did not take them.
    #[error("storing pages of {range}: they stay")]
    Store {
        /// Of what.
        range: HvaRange,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The kernel did not drop them.
    #[error(
        "dropping pages of {range}: those that are still there stay. Is a part of it locked, or unmapped?"
    )]
    Drop {
        /// Of what.
        range: HvaRange,
        /// Why.
        #[source]
        source: ReclaimError,
    },
}

/// What became of the pages of an eviction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// Pages that left, those of zeros among them.
    pub pages: u64,
    /// Pages of zeros: nothing of them is in the store.
    pub zeros: u64,
    /// Pages that stayed, because they were written to or discarded on the way.
    pub stayed: u64,
}

impl std::ops::AddAssign for Evicted {
    fn add_assign(&mut self, other: Self) {
        self.pages += other.pages;
        self.zeros += other.zeros;
        self.stayed += other.stayed;
    }
}

/// What a page of the block at hand is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pack {
    Slot(Slot),
    Zero,
}

/// One thread's means to evict. Any number of threads evict from one [`Swapper`].
#[derive(Debug)]
pub struct Evictor<'s> {
    swapper: &'s Swapper,
    buffer: PageBuffer,
    slots: Vec<Slot>,
    /// By page of the block at hand: whether it was claimed here.
    claimed: Vec<bool>,
    /// By page of the block at hand: where it went.
    packs: Vec<Option<Pack>>,
    /// By page of the block at hand: the checksum of what is stored.
    sums: Vec<u32>,
}

impl<'s> Evictor<'s> {
    /// Means of one's own.
    ///
    /// # Errors
    /// There is no memory for its buffer of 2 MiB.
    pub fn new(swapper: &'s Swapper) -> Result<Self, BufferError> {
        Ok(Self {
            swapper,
            buffer: PageBuffer::new(BLOCK_PAGES)?,
            slots: Vec::with_capacity(BLOCK_PAGES),
            claimed: vec![false; BLOCK_PAGES],
            packs: vec![None; BLOCK_PAGES],
            sums: vec![0; BLOCK_PAGES],
        })
    }

    /// Evicts `range`, block by block, all three steps of each.
    ///
    /// # Errors
    /// [`EvictError`], with what was evicted before it.
    pub fn evict(&mut self, range: HvaRange) -> Result<Evicted, (Evicted, EvictError)> {
        let mut all = Evicted::default();
        for piece in blocks_of(range) {
            let one = self.claim(piece).and_then(Claimed::store).and_then(Packed::drop_pages);
            all += one.map_err(|error| (all, error))?;
        }
        Ok(all)
    }

    /// Claims the resident pages of `range`, which lies in one 2 MiB block, and write-protects them.
    ///
    /// # Errors
    /// The range does not fit, or the kernel refuses.
    pub fn claim(&mut self, range: HvaRange) -> Result<Claimed<'_, 's>, EvictError> {
        self.swapper.region().check(range)?;
        let (block, pages) = self.swapper.place(range).ok_or(EvictError::Blocks(range))?;
        self.claimed.fill(false);
        self.packs.fill(None);
        let still = self.swapper.still();
        let number = self.swapper.next_claim();
        self.swapper.reading.settle();
        let mut claimed = Claimed { evictor: self, number, block, pages, _still: still };
        claimed.protect().map_err(|source| EvictError::Protect { range, source })?;
        Ok(claimed)
    }
}

/// Pages that are claimed and write-protected. Dropped, they are what they were before.
#[derive(Debug)]
pub struct Claimed<'e, 's> {
    evictor: &'e mut Evictor<'s>,
    /// Whose pages they are: one that was given up and claimed again is another's.
    number: u64,
    block: usize,
    pages: Range<usize>,
    /// Nobody moves the memory elsewhere meanwhile.
    _still: RwLockReadGuard<'s, ()>,
}

impl<'e, 's> Claimed<'e, 's> {
    /// How many pages were claimed.
    pub fn len(&self) -> usize {
        self.evictor.claimed.iter().filter(|claimed| **claimed).count()
    }

    /// Whether there was nothing to claim.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn protect(&mut self) -> Result<(), ResolveError> {
        let swapper = self.evictor.swapper;
        {
            let mut block = swapper.blocks.lock(self.block);
            for page in self.pages.clone() {
                if block.fate(page) == Fate::Resident {
                    block.set(page, Fate::Leaving(self.number));
                    self.evictor.claimed[page] = true;
                }
            }
        }
        // Not under the lock: `EAGAIN` is waited out, and who ends it may want the block. A page that is discarded or
        // written to before it is protected is protected in vain, which its next write finds out.
        let claimed = &self.evictor.claimed;
        for (run, _) in runs(BLOCK_PAGES, |page| claimed[page].then_some(())) {
            swapper.insist(|| swapper.userfault.write_protect(swapper.range_of(self.block, &run)))?;
        }
        Ok(())
    }

    /// Copies the pages out and stores them. The guest may read them, and whoever writes to one keeps it.
    ///
    /// # Errors
    /// The store refuses, or a page cannot be read.
    pub fn store(mut self) -> Result<Packed<'e, 's>, EvictError> {
        self.pack()?;
        Ok(Packed(self))
    }

    /// Leaving -> Resident, in one go with the protection: once a page is resident it may be claimed by another, whose
    /// protection must stay. Whether it is done; if not, a mapping changes, and who ends that may want the block.
    fn give_up(&mut self) -> bool {
        let Evictor { swapper, claimed, .. } = &mut *self.evictor;
        let mut block = swapper.blocks.lock(self.block);
        let ours = Fate::Leaving(self.number);
        claimed.iter_mut().enumerate().for_each(|(page, claimed)| *claimed &= block.fate(page) == ours);
        for (run, ()) in runs(BLOCK_PAGES, |page| claimed[page].then_some(())) {
            let range = swapper.range_of(self.block, &run);
            match swapper.userfault.write_unprotect(range, Wake::Yes) {
                Err(ResolveError { kind: ResolveKind::Changing, .. }) => return false,
                // If the kernel refuses, the next write to each page finds it resident and asks again.
                Ok(()) | Err(_) => run.for_each(|page| block.set(page, Fate::Resident)),
            }
        }
        true
    }

    fn pack(&mut self) -> Result<(), EvictError> {
        let Evictor { swapper, buffer, slots, claimed, packs, sums } = &mut *self.evictor;
        let first = swapper.first_page(self.block);
        let readable = swapper.copy_out(self.block, claimed, buffer)?;
        let content = |page: usize| match (readable[page], is_zero_page(&buffer[page])) {
            (false, _) => None,
            (true, zero) => Some(zero),
        };
        for (run, zero) in runs(BLOCK_PAGES, content) {
            if zero {
                packs[run].fill(Some(Pack::Zero));
                continue;
            }
            slots.clear();
            slots.resize(run.len(), Slot::default());
            swapper
                .store
                .put(&buffer[run.clone()], slots)
                .map_err(|source| EvictError::Store { range: swapper.range_of(self.block, &run), source })?;
            for (page, &slot) in run.zip(slots.iter()) {
                packs[page] = Some(Pack::Slot(slot));
                sums[page] = checksum(&buffer[page], first + page as u64);
            }
        }
        Ok(())
    }
}

impl Drop for Claimed<'_, '_> {
    /// Gives up whatever was not taken over: slots are freed, and pages that are still claimed can be written to.
    fn drop(&mut self) {
        let Evictor { swapper, packs, slots, .. } = &mut *self.evictor;
        slots.clear();
        slots.extend(packs.iter_mut().filter_map(|pack| match pack.take() {
            Some(Pack::Slot(slot)) => Some(slot),
            _ => None,
        }));
        swapper.store.free(slots);
        while !self.give_up() {
            std::thread::yield_now();
        }
    }
}

/// Pages that are claimed and stored. Dropped, they stay, and the store forgets them.
#[derive(Debug)]
pub struct Packed<'e, 's>(Claimed<'e, 's>);

impl Packed<'_, '_> {
    /// The ranges that [`Packed::drop_pages`] would drop if no page is written to before: what an announcement is made
    /// of.
    pub fn ranges(&self) -> impl Iterator<Item = HvaRange> {
        let Claimed { evictor, block, .. } = &self.0;
        let (swapper, packs, block) = (evictor.swapper, &evictor.packs, *block);
        runs(BLOCK_PAGES, |page| packs[page].map(|_| ())).map(move |(run, _)| swapper.range_of(block, &run))
    }

    /// Drops the pages that nobody has written to meanwhile.
    ///
    /// # Errors
    /// The kernel refuses: then the pages stay, but those dropped before.
    pub fn drop_pages(mut self) -> Result<Evicted, EvictError> {
        let leaving = self.leave();
        let Claimed { evictor, block, number, .. } = &mut self.0;
        let Evictor { swapper, packs, claimed, .. } = &mut **evictor;
        let mut evicted = Evicted::default();
        let mut failed = None;
        for run in leaving {
            let mut dropped = Ok(());
            let mut stayed = vec![failed.is_some(); run.len()];
            if failed.is_none() {
                dropped = swapper.drop_run(*block, &run);
                if dropped.is_err() {
                    stayed = swapper.still_there(*block, &run);
                }
            }
            let mut fates = swapper.blocks.lock(*block);
            for page in run.clone() {
                let Fate::Dropping(then) = fates.fate(page) else {
                    unreachable!("nobody else changes a page that is being dropped, but by discarding it")
                };
                // A slot goes from the pack to the fate, or stays in the pack and is given up with it, and the claim
                // too; one that was discarded meanwhile is nobody's any more.
                if stayed[page - run.start] && then != Then::Absent {
                    fates.set(page, Fate::Leaving(*number));
                    continue;
                }
                packs[page] = None;
                fates.set(page, then.into());
                evicted.pages += 1;
                evicted.zeros += u64::from(then == Then::Zero);
            }
            drop(fates);
            if let Err(source) = dropped {
                failed = Some(EvictError::Drop { range: swapper.range_of(*block, &run), source });
            }
        }
        evicted.stayed = claimed.iter().filter(|claimed| **claimed).count() as u64 - evicted.pages;
        match failed {
            Some(error) => Err(error),
            None => Ok(evicted),
        }
    }

    /// Leaving -> Dropping, for the pages that are still claimed: who faults on one now waits until it is gone.
    fn leave(&mut self) -> Vec<Range<usize>> {
        let Claimed { evictor, number, block, .. } = &mut self.0;
        let Evictor { swapper, packs, sums, .. } = &mut **evictor;
        let mut fates = swapper.blocks.lock(*block);
        let going = |fates: &Block, page: usize| {
            let pack = packs[page].filter(|_| fates.fate(page) == Fate::Leaving(*number))?;
            Some(match pack {
                Pack::Slot(slot) => Then::Stored(slot),
                Pack::Zero => Then::Zero,
            })
        };
        let leaving: Vec<Range<usize>> =
            runs(BLOCK_PAGES, |page| going(&fates, page).map(|_| ())).map(|(run, ())| run).collect();
        for page in leaving.iter().cloned().flatten() {
            let then = going(&fates, page).expect("it was going a moment ago, and the block is locked");
            fates.set(page, Fate::Dropping(then));
            if let Then::Stored(_) = then {
                fates.set_checksum(page, sums[page]);
            }
        }
        leaving
    }
}

impl Swapper {
    /// Calls until a mapping no longer changes. No lock is held: whoever reads the event that ends it may need one.
    pub(super) fn insist(&self, call: impl Fn() -> Result<(), ResolveError>) -> Result<(), ResolveError> {
        loop {
            match call() {
                Err(ResolveError { kind: ResolveKind::Changing, .. }) => std::thread::yield_now(),
                done => return done,
            }
        }
    }

    /// Drops pages that are stored: for anonymous memory `MADV_DONTNEED`, for shared memory a hole. After an error some
    /// may be gone.
    fn drop_run(&self, block: usize, run: &Range<usize>) -> Result<(), ReclaimError> {
        let (range, operation) = (self.range_of(block, run), self.drop_operation());
        if operation == Operation::Fallocate {
            return perform_unmeasured(self.region(), operation, range);
        }
        self.own_drops.expect(range);
        let dropped = perform_unmeasured(self.region(), operation, range);
        // Each event was read, or the call would not have ended. Only when it is acted on as well is it known for ours.
        self.reading.settle();
        self.own_drops.is_over(range);
        dropped
    }

    /// Which pages of a run the kernel has not dropped. Nobody touches them meanwhile.
    fn still_there(&self, block: usize, run: &Range<usize>) -> Vec<bool> {
        // A hole is refused as a whole. Of a range in several mappings, those before the one that stopped it are gone.
        let mut there = vec![self.region().backing().is_shared(); run.len()];
        if !there[0] {
            let range = self.range_of(block, run);
            // Unknown is as good as gone: what is brought back from the store and is there after all is left as it is.
            for resident in self.residents(range).unwrap_or_default() {
                let first = (resident.start().get() - range.start().get()) / PAGE_SIZE;
                there[first as usize..(first + resident.page_count()) as usize].fill(true);
            }
        }
        there
    }

    /// Copies the claimed pages to their places in `buffer`, and says which could be read. A page that is gone (somebody
    /// discarded it) cannot.
    ///
    /// By the kernel and not by loads: a missing page is then an error here, not a fault that has to be served, and a
    /// page that is written to meanwhile is torn, not undefined. Shared memory is read by its file, where a page that is
    /// not mapped is as good as any, and a hole is zeros.
    fn copy_out(
        &self,
        block: usize,
        claimed: &[bool],
        buffer: &mut [Page],
    ) -> Result<[bool; BLOCK_PAGES], EvictError> {
        let mut readable = [false; BLOCK_PAGES];
        for (run, _) in runs(BLOCK_PAGES, |page| claimed[page].then_some(())) {
            let mut at = run.start;
            while at < run.end {
                let range = self.range_of(block, &(at..run.end));
                let to = Page::bytes_mut(&mut buffer[at..run.end]);
                let copied = match self.region().memfd() {
                    Some(memfd) => {
                        let offset = (self.first_page(block) + at as u64) * PAGE_SIZE;
                        rustix::io::pread(memfd, to, offset)
                    }
                    None => sys::copy_out(range, to),
                };
                match copied {
                    // A signal came in between.
                    Err(Errno::INTR) => {}
                    Ok(bytes) => {
                        let whole = bytes / PAGE_SIZE as usize;
                        readable[at..at + whole].fill(true);
                        // What stopped it is the next page.
                        at += whole + 1;
                    }
                    Err(Errno::FAULT) => at += 1,
                    Err(source) => return Err(EvictError::Copy { range, source }),
                }
            }
        }
        Ok(readable)
    }
}
