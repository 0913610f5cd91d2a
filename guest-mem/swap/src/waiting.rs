//! Faults that could not be served yet: a mapping was changing, or the page was being dropped.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use uffd::PageFault;

/// Faults that wait for a handler to serve them again.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    faults: Mutex<Vec<PageFault>>,
    count: AtomicUsize,
}

impl Waiting {
    /// Whether there is none. A fault that another thread adds at the same time may be missed: that thread looks again
    /// itself.
    pub fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// Adds one.
    pub fn push(&self, fault: PageFault) {
        let mut faults = self.lock();
        faults.push(fault);
        self.count.store(faults.len(), Ordering::Relaxed);
    }

    /// Moves all of them to `to`.
    pub fn take(&self, to: &mut VecDeque<PageFault>) {
        if self.is_empty() {
            return;
        }
        let mut faults = self.lock();
        to.extend(faults.drain(..));
        self.count.store(0, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<PageFault>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
