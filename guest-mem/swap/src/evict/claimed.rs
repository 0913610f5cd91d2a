//! Pages that a claim has write-protected.

use std::ops::Range;

use guest_mem::waits::{Overdue, Patience, WAKE};
use guest_mem::{HvaRange, is_zero_page};
use uffd::{ResolveError, ResolveKind, Wake};

use super::error::EvictError;
use super::evictor::{Evictor, Share};
use crate::runs::runs;
use crate::state::{BLOCK_PAGES, SwapState};
use crate::store::{Slot, checksum};

/// Pages that are claimed and write-protected. If it is dropped, they are resident again.
#[derive(Debug)]
pub struct Claimed<'e, 's> {
    pub(super) evictor: &'e mut Evictor<'s>,
    /// The claim's number: a page that was given up and claimed again has the number of the other claim.
    pub(super) number: u64,
    pub(super) block: usize,
    /// Its pages in the block, one for each share.
    pages: Range<usize>,
    /// The number of claimed pages among them.
    count: usize,
}

impl<'s> Evictor<'s> {
    /// Claims the resident pages of `range`, which lies in one 2 MiB block, and write-protects them.
    ///
    /// # Errors
    /// The range does not fit, or the kernel refuses.
    pub fn claim(&mut self, range: HvaRange) -> Result<Claimed<'_, 's>, EvictError> {
        let swapper = self.swapper;
        swapper.region().check(range)?;
        let (block, pages) = swapper.place(range).ok_or(EvictError::Blocks(range))?;
        self.shares.clear();
        let number = swapper.next_claim();
        swapper.reading.settle()?;
        let mut claimed = Claimed { evictor: self, number, block, pages, count: 0 };
        claimed.protect()?;
        Ok(claimed)
    }
}

impl Claimed<'_, '_> {
    /// How many pages were claimed.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there was nothing to claim.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The page of the block that a share stands for.
    pub(super) fn page(&self, share: usize) -> usize {
        self.pages.start + share
    }

    /// The pages of the block that a range of shares stands for.
    pub(super) fn in_block(&self, shares: &Range<usize>) -> Range<usize> {
        self.page(shares.start)..self.page(shares.end)
    }

    /// The addresses of the pages that shares stand for.
    pub(super) fn range_of(&self, shares: &Range<usize>) -> HvaRange {
        self.evictor.swapper.range_of(self.block, &self.in_block(shares))
    }

    /// The runs of shares of which `wanted` is true.
    pub(super) fn shares(&self, wanted: impl Fn(Share) -> bool) -> impl Iterator<Item = Range<usize>> {
        let shares = &self.evictor.shares;
        runs(shares.len(), move |at| wanted(shares[at]).then_some(())).map(|(run, ())| run)
    }

    fn protect(&mut self) -> Result<(), EvictError> {
        let Evictor { swapper, shares, .. } = &mut *self.evictor;
        {
            let mut block = swapper.blocks.lock(self.block);
            shares.extend(self.pages.clone().map(|page| match block.state(page) {
                SwapState::Resident => {
                    block.set(page, SwapState::Leaving(self.number));
                    self.count += 1;
                    Share::Claimed
                }
                _ => Share::None,
            }));
        }
        // Not under the lock: `EAGAIN` is waited out, and the handler that ends it may need the block. A page that is
        // discarded or written to before it is protected is protected without need, until its next write.
        let swapper = self.evictor.swapper;
        self.shares(|share| share == Share::Claimed).try_for_each(|run| {
            let range = self.range_of(&run);
            let protected = swapper.insist(|| swapper.userfault.write_protect(range))?;
            protected.map_err(|source| EvictError::Protect { range, source })
        })
    }

    /// Copies the pages out and stores them, and updates each share.
    pub(super) fn pack(&mut self) -> Result<(), EvictError> {
        // Of each page that could be read, whether it is zero.
        let mut zero = [None; BLOCK_PAGES];
        let Evictor { swapper, buffer, shares, .. } = &mut *self.evictor;
        let claimed = |at: usize| (shares[at] == Share::Claimed).then_some(());
        for (run, ()) in runs(shares.len(), claimed) {
            let pages = self.pages.start + run.start..self.pages.start + run.end;
            let range = swapper.range_of(self.block, &pages);
            swapper.copy_out(range, &mut buffer[run.clone()], |at, page| {
                zero[run.start + at] = Some(is_zero_page(page));
            })?;
        }
        for (run, zero) in runs(self.pages.len(), |at| zero[at]) {
            if zero {
                self.evictor.shares[run].fill(Share::Zero);
                continue;
            }
            let (range, first) = (self.range_of(&run), self.in_block(&run).start as u64);
            let Evictor { swapper, buffer, slots, shares } = &mut *self.evictor;
            slots.clear();
            slots.resize(run.len(), Slot::default());
            let content = &buffer[run.clone()];
            swapper.store.put(content, slots).map_err(|source| EvictError::Store { range, source })?;
            let pages = swapper.first_page(self.block) + first..;
            for (((share, &slot), content), page) in
                shares[run].iter_mut().zip(&*slots).zip(content).zip(pages)
            {
                *share = Share::Stored(slot, checksum(content, page));
            }
        }
        Ok(())
    }

    /// Leaving -> Resident, under one lock with the protection: once a page is resident another may claim it, and that claim's
    /// protection must stay. Returns `false` if a mapping changes: the handler that ends the change may need the block.
    fn give_up(&mut self) -> bool {
        let swapper = self.evictor.swapper;
        let mut block = swapper.blocks.lock(self.block);
        let ours = SwapState::Leaving(self.number);
        for (share, page) in self.evictor.shares.iter_mut().zip(self.pages.clone()) {
            if block.state(page) != ours {
                *share = Share::None;
            }
        }
        for run in self.shares(|share| share != Share::None) {
            match swapper.userfault.write_unprotect(self.range_of(&run), Wake::Yes) {
                Err(ResolveError { kind: ResolveKind::Changing, .. }) => return false,
                // If the kernel refuses, the next write to each page finds it resident and asks again.
                Ok(()) | Err(_) => self.in_block(&run).for_each(|page| block.set(page, SwapState::Resident)),
            }
        }
        true
    }
}

impl Drop for Claimed<'_, '_> {
    /// Gives up the pages that were not dropped: slots are freed, and pages that are still claimed can be written to.
    fn drop(&mut self) {
        let Evictor { swapper, shares, slots, .. } = &mut *self.evictor;
        slots.clear();
        for share in shares.iter_mut() {
            if let Share::Stored(slot, _) = *share {
                slots.push(slot);
                *share = Share::Claimed;
            }
        }
        swapper.store.free(slots);
        let mut patience = Patience::new(WAKE);
        while !self.give_up() {
            if let Some(waited) = patience.over() {
                // They stay claimed without a claim: the next write to each makes it resident again.
                let range = self.range_of(&(0..self.pages.len()));
                let what =
                    format!("a fault handler to read the event that keeps pages of {range} write-protected");
                return Overdue::new(what, waited).tell();
            }
        }
    }
}
