//! Pages whose content is stored, and that are dropped unless they were written to.

use std::ops::Range;

use guest_mem::HvaRange;

use super::claimed::Claimed;
use super::error::EvictError;
use super::evicted::Evicted;
use super::evictor::{Evictor, Share};
use crate::runs::runs;
use crate::state::{AfterDrop, SwapState};

/// Pages that are claimed and stored. If it is dropped, they stay, and their slots are freed.
#[derive(Debug)]
pub struct Packed<'e, 's>(Claimed<'e, 's>);

impl Evictor<'_> {
    /// Evicts `range`, block by block, all three steps of each.
    ///
    /// # Errors
    /// [`EvictError`], with what was evicted before it.
    pub fn evict(&mut self, range: HvaRange) -> Result<Evicted, (Evicted, EvictError)> {
        let mut all = Evicted::default();
        for piece in range.block_pieces() {
            let one = self.claim(piece).and_then(Claimed::store).and_then(Packed::drop_pages);
            all += one.map_err(|error| (all, error))?;
        }
        Ok(all)
    }
}

impl<'e, 's> Claimed<'e, 's> {
    /// Copies the pages out and stores them. The guest may read them meanwhile; a page that is written to stays.
    ///
    /// # Errors
    /// The store refuses, or a page cannot be read.
    pub fn store(mut self) -> Result<Packed<'e, 's>, EvictError> {
        self.pack()?;
        Ok(Packed(self))
    }
}

impl Packed<'_, '_> {
    /// The ranges that [`Packed::drop_pages`] drops if no page is written to before: the ranges to announce.
    pub fn ranges(&self) -> impl Iterator<Item = HvaRange> {
        self.0.shares(Share::is_packed).map(|run| self.0.range_of(&run))
    }

    /// Drops the pages that were not written to meanwhile.
    ///
    /// # Errors
    /// The kernel refuses: the pages that were not dropped before stay.
    pub fn drop_pages(mut self) -> Result<Evicted, EvictError> {
        let swapper = self.0.evictor.swapper;
        let mut evicted = Evicted::default();
        let mut failed = None;
        for run in self.leave() {
            let range = self.0.range_of(&run);
            let mut dropped = Ok(());
            let mut stayed = vec![failed.is_some(); run.len()];
            if failed.is_none() {
                dropped = swapper.drop_run(range);
                if dropped.is_err() {
                    stayed = swapper.still_there(range);
                }
            }
            self.settle(run, &stayed, &mut evicted);
            if let Err(source) = dropped {
                failed = Some(EvictError::Drop { range, source });
            }
        }
        evicted.stayed = self.0.len() as u64 - evicted.pages;
        match failed {
            Some(error) => Err(error),
            None => Ok(evicted),
        }
    }

    /// Leaving -> Dropping, for the pages that are still claimed: a fault on one waits until it is gone.
    fn leave(&mut self) -> Vec<Range<usize>> {
        let Claimed { evictor, number, block, .. } = &self.0;
        let mut states = evictor.swapper.blocks.lock(*block);
        let ours = SwapState::Leaving(*number);
        let going = |at: usize| {
            (evictor.shares[at].is_packed() && states.state(self.0.page(at)) == ours).then_some(())
        };
        let leaving: Vec<Range<usize>> = runs(evictor.shares.len(), going).map(|(run, ())| run).collect();
        for run in &leaving {
            for (page, &share) in self.0.in_block(run).zip(&evictor.shares[run.clone()]) {
                let then = match share {
                    Share::Stored(slot, sum) => {
                        states.set_checksum(page, sum);
                        AfterDrop::Stored(slot)
                    }
                    _ => AfterDrop::Zero,
                };
                states.set(page, SwapState::Dropping(then));
            }
        }
        leaving
    }

    /// Dropping -> Stored | Zero, or back to Leaving for pages that stayed.
    fn settle(&mut self, run: Range<usize>, stayed: &[bool], evicted: &mut Evicted) {
        let pages = self.0.in_block(&run);
        let Claimed { evictor, number, block, .. } = &mut self.0;
        let mut states = evictor.swapper.blocks.lock(*block);
        for ((page, share), &stayed) in pages.zip(&mut evictor.shares[run]).zip(stayed) {
            let SwapState::Dropping(then) = states.state(page) else {
                unreachable!("a page that is being dropped can only be discarded")
            };
            // A slot moves from the share to the state, or stays in the share and is freed with the claim. The slot of a
            // discarded page was freed with its state.
            if stayed && then != AfterDrop::Absent {
                states.set(page, SwapState::Leaving(*number));
                continue;
            }
            *share = Share::None;
            states.set(page, then.into());
            evicted.pages += 1;
            evicted.zeros += u64::from(then == AfterDrop::Zero);
        }
    }
}
