//! Waiting for those who have read events and not yet acted on them.
//!
//! Whoever discards memory waits until its event is read, and goes on then, whatever the reader does next. So there is a
//! moment in which the memory is discarded, may already hold something new, and the swapper does not know yet. A page
//! that was claimed in that moment, and stored, would be forgotten with its new content. Therefore a claim first waits
//! for every reader that is at work: what was read before the claim has been acted on, and what is read later was
//! discarded later.

use std::sync::atomic::{AtomicU64, Ordering};

/// Places of readers. A place's count is odd while its reader is at work.
#[derive(Debug)]
pub(super) struct Readers([AtomicU64; PLACES]);

/// The most readers there can be.
const PLACES: usize = 16;

impl Default for Readers {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

/// A reader at work.
pub(super) struct AtWork<'a>(&'a AtomicU64);

impl Readers {
    /// Begins: to be called before events are read, and kept until they are acted on. Each place has one reader.
    pub fn begin(&self, place: usize) -> AtWork<'_> {
        let place = &self.0[place];
        place.fetch_add(1, Ordering::SeqCst);
        AtWork(place)
    }

    /// Most readers there can be.
    pub const fn places() -> usize {
        PLACES
    }

    /// Returns when every reader that was at work has finished once.
    pub fn wait_for_those_at_work(&self) {
        for place in &self.0 {
            let seen = place.load(Ordering::SeqCst);
            while seen % 2 == 1 && place.load(Ordering::SeqCst) == seen {
                std::thread::yield_now();
            }
        }
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}
