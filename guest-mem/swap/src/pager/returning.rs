//! Brings back pages that are out: piece by piece, or as a whole huge page.

use std::ops::Range;

use guest_mem::{PAGE_SIZE, Page};
use uffd::{ResolveKind, Wake};

use super::error::Obstacle;
use super::{LostWhy, Pager, Served, Wanted};
use crate::fill::Source;
use crate::runs::runs;
use crate::state::{BLOCK_PAGES, Block, SwapState};
use crate::store::checksum;

impl Pager<'_> {
    /// Brings back the pages of the window that are out. The wanted page is out: its run comes first, and
    /// errors of the others are ignored.
    pub(super) fn return_pages(
        &mut self,
        block: &mut Block,
        wanted: &Wanted,
        around: Range<usize>,
    ) -> Result<Served, Obstacle> {
        let page = wanted.page;
        let source = |place: usize| match block.state(around.start + place) {
            SwapState::Stored(_) => Some(Source::Store),
            SwapState::Zero if wanted.write && around.start + place == page => Some(Source::Zeros),
            SwapState::Zero => Some(Source::ZeroPage),
            _ => None,
        };
        let mut pieces: Vec<(Range<usize>, Source)> = runs(around.len(), source).collect();
        let of_the_page = pieces.iter().position(|(run, _)| run.contains(&(page - around.start)));
        pieces.swap(0, of_the_page.expect("the wanted page is out"));
        let mut returned = 0;
        for (run, source) in pieces {
            let pages = around.start + run.start..around.start + run.end;
            match self.return_run(block, wanted.block, pages, source) {
                Ok(pages) => returned += pages,
                Err(obstacle) if block.state(page).is_out() => return Err(obstacle),
                Err(_) => break,
            }
        }
        Ok(Served::Returned(returned))
    }

    /// Brings back pages of one source.
    fn return_run(
        &mut self,
        block: &mut Block,
        block_number: usize,
        pages: Range<usize>,
        source: Source,
    ) -> Result<u32, Obstacle> {
        let swapper = self.swapper;
        if source == Source::Store {
            self.fetch(block, swapper.first_page(block_number), pages.clone())?;
        }
        let content = &self.buffer[pages.clone()];
        let filled = swapper.fill(swapper.range_of(block_number, &pages), source, content);
        // The filled pages may be written to from now on, also if the others failed.
        self.forget(block, pages.start..pages.start + filled.pages);
        filled.result?;
        Ok(filled.pages as u32)
    }

    /// Reads stored pages into their places in the buffer, and compares their checksums.
    fn fetch(&mut self, block: &Block, first: u64, pages: Range<usize>) -> Result<(), LostWhy> {
        self.slots.clear();
        self.slots.extend(pages.clone().map(|page| match block.state(page) {
            SwapState::Stored(slot) => slot,
            _ => unreachable!("the run is of stored pages, and the block is locked"),
        }));
        let buffer = &mut self.buffer[pages.clone()];
        self.swapper.store.get(&self.slots, buffer)?;
        check(block, first, pages, buffer)
    }

    /// Marks pages resident, and frees their slots.
    fn forget(&mut self, block: &mut Block, pages: Range<usize>) {
        self.slots.clear();
        for page in pages {
            if let SwapState::Stored(slot) = block.state(page) {
                self.slots.push(slot);
            }
            block.set(page, SwapState::Resident);
        }
        self.swapper.store.free(&self.slots);
    }

    /// Brings a whole block back as one huge page, if all of it is out and this memory has huge pages.
    pub(super) fn return_huge(
        &mut self,
        block: &mut Block,
        block_number: usize,
    ) -> Result<Option<Served>, Obstacle> {
        let swapper = self.swapper;
        let Some(stage) = &mut self.stage else { return Ok(None) };
        if !(0..BLOCK_PAGES).all(|page| block.state(page).is_out()) {
            return Ok(None);
        }
        let first = swapper.first_page(block_number);
        let slots = &mut self.slots;
        let filled = stage.fill(|pages| {
            for (run, stored) in
                runs(BLOCK_PAGES, |page| Some(matches!(block.state(page), SwapState::Stored(_))))
            {
                let pages = &mut pages[run.clone()];
                if !stored {
                    Page::bytes_mut(pages).fill(0);
                    continue;
                }
                slots.clear();
                slots.extend(run.clone().filter_map(|page| match block.state(page) {
                    SwapState::Stored(slot) => Some(slot),
                    _ => None,
                }));
                swapper.store.get(slots, pages)?;
                check(block, first, run, pages)?;
            }
            Ok::<(), LostWhy>(())
        });
        // No memory for a stage, or a damaged page: bring them back piece by piece.
        let Some(Ok(region)) = filled else { return Ok(None) };
        let whole = swapper.range_of(block_number, &(0..BLOCK_PAGES));
        match swapper.userfault.move_pages(whole.start(), region, region.range(), Wake::Yes) {
            Ok(()) => {}
            Err(error) if error.kind == ResolveKind::Changing => return Err(Obstacle::Later),
            // Moved in part: these pages are resident, the rest is still in the store.
            Err(error) => {
                self.forget(block, 0..(error.done / PAGE_SIZE) as usize);
                return Ok(None);
            }
        }
        let huge = stage.arrived_whole(whole.start());
        self.forget(block, 0..BLOCK_PAGES);
        Ok(Some(if huge { Served::Huge } else { Served::Returned(BLOCK_PAGES as u32) }))
    }
}

/// Compares the checksums of pages that came back.
fn check(block: &Block, first: u64, pages: Range<usize>, content: &[Page]) -> Result<(), LostWhy> {
    for (page, content) in pages.zip(content) {
        let (expected, found) = (block.checksum(page), checksum(content, first + page as u64));
        if expected != found {
            return Err(LostWhy::Checksum { expected, found });
        }
    }
    Ok(())
}
