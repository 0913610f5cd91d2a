//! A software TLB over the primary MMU's own page tables: the sharing listener.
//!
//! ```text
//!   access ── hit ──────────────────────────────────> use the frame, under the TLB's lock
//!      └──── miss: generation ── resolve (no lock) ── generation unchanged? insert : begin again
//!   invalidate_secondary_tlbs ── generation + 1 ── drop what is cached of the range
//! ```
//!
//! There is no bracket: the page table has already changed when the flush comes, so a walk that begins after
//! it finds the new page. A walk that began before it must not be cached, which is what the generation is for
//! (hardware completes the walks in flight before it reports an invalidation done).
//!
//! Flushes that found nothing are counted apart. Before 6.6 every bracket ended in one: the *double call*,
//! `invalidate_range` repeated by `invalidate_range_end`.

use std::sync::{Mutex, MutexGuard, PoisonError};

use guest_mem::{Address, Hva, HvaRange, PAGE_SHIFT, PAGE_SIZE};

use crate::listener::{Listener, Sharing, SharingMmu};
use crate::primary::{Frame, PrimaryMmu, ResolveError};

/// The counters of a [`SharedTlb`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SharedTlbStats {
    /// Accesses that found their page cached.
    pub hits: u64,
    /// Walks of the primary MMU's page table.
    pub walks: u64,
    /// Walks that a flush overtook, made again.
    pub retries: u64,
    /// Calls of `invalidate_secondary_tlbs`.
    pub flushes: u64,
    /// Those of them that found nothing to drop.
    pub empty_flushes: u64,
    /// Cached pages dropped by flushes.
    pub entries_dropped: u64,
}

#[derive(Clone, Copy)]
struct Entry {
    vpn: u64,
    pfn: u64,
    writable: bool,
}

struct State {
    /// Direct-mapped: a page has one place, `vpn % len`. `len` is a power of two.
    entries: Box<[Option<Entry>]>,
    generation: u64,
    stats: SharedTlbStats,
}

/// A TLB of fixed size over the page tables of `P`, in pages of 4 KiB.
pub struct SharedTlb<P> {
    primary: P,
    state: Mutex<State>,
}

impl<P: PrimaryMmu> SharedTlb<P> {
    /// An empty TLB of at least `entries` pages (rounded up to a power of two).
    pub fn new(primary: P, entries: usize) -> Self {
        let entries = vec![None; entries.max(1).next_power_of_two()].into();
        Self {
            primary,
            state: Mutex::new(State { entries, generation: 0, stats: SharedTlbStats::default() }),
        }
    }

    /// Reaches the byte at `hva`: `f` gets the frame of its page and the offset in it. No flush returns while
    /// `f` runs.
    ///
    /// # Errors
    /// The primary MMU has no such page, or not for writing.
    pub fn access<R>(
        &self,
        hva: Hva,
        write: bool,
        f: impl FnOnce(P::Frame, u64) -> R,
    ) -> Result<R, ResolveError> {
        let (vpn, offset) = (hva.get() >> PAGE_SHIFT, hva.get() % PAGE_SIZE);
        let mut state = self.state();
        let pfn = match state.lookup(vpn, write) {
            Some(pfn) => {
                state.stats.hits += 1;
                pfn
            }
            None => loop {
                state.stats.walks += 1;
                let generation = state.generation;
                drop(state);
                let mapping = self.primary.resolve(hva.align_down(PAGE_SIZE), write)?;
                state = self.state();
                if state.generation == generation {
                    let pfn = mapping.frame.pfn();
                    state.insert(Entry { vpn, pfn, writable: mapping.writable });
                    break pfn;
                }
                state.stats.retries += 1;
            },
        };
        let result = f(P::Frame::from_pfn(pfn), offset);
        drop(state);
        Ok(result)
    }

    /// Its counters so far.
    pub fn stats(&self) -> SharedTlbStats {
        self.state().stats
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // `f` may panic with the lock held, and touches nothing of the state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn place(&self, vpn: u64) -> usize {
        (vpn & (self.entries.len() as u64 - 1)) as usize
    }
    fn lookup(&self, vpn: u64, write: bool) -> Option<u64> {
        self.entries[self.place(vpn)].filter(|e| e.vpn == vpn && (e.writable || !write)).map(|e| e.pfn)
    }
    fn insert(&mut self, entry: Entry) {
        let place = self.place(entry.vpn);
        self.entries[place] = Some(entry);
    }

    /// Drops cached pages of `range`, looking at each place at most once.
    fn drop_range(&mut self, range: HvaRange) -> u64 {
        let first = range.start().get() >> PAGE_SHIFT;
        let pages = range.page_count();
        let mut dropped = 0;
        for step in 0..pages.min(self.entries.len() as u64) {
            let place = self.place(first + step);
            dropped +=
                u64::from(self.entries[place].take_if(|e| (first..first + pages).contains(&e.vpn)).is_some());
        }
        dropped
    }
}

impl<P: PrimaryMmu> Listener for SharedTlb<P> {
    type Kind = Sharing;
}

impl<P: PrimaryMmu> SharingMmu for SharedTlb<P> {
    fn invalidate_secondary_tlbs(&self, range: HvaRange) {
        let mut state = self.state();
        state.generation += 1;
        let dropped = state.drop_range(range);
        state.stats.flushes += 1;
        state.stats.empty_flushes += u64::from(dropped == 0);
        state.stats.entries_dropped += dropped;
    }
}

#[cfg(test)]
mod tests;
