//! The atomics and the locks of the protocols: the standard library's, or under `--cfg loom` those
//! that loom explores every interleaving of.

use std::time::Duration;

#[cfg(not(loom))]
pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering, fence},
};

#[cfg(loom)]
pub(crate) use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering, fence},
};

/// The lock, whatever a thread that panicked while holding it may have left: every section under it leaves
/// the data whole at each step that can panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Turns of a loop that waits for another thread.
#[cfg(not(loom))]
#[derive(Debug)]
pub(crate) struct Turns {
    taken: u32,
    patience: guest_mem::waits::Patience,
}

#[cfg(not(loom))]
impl Turns {
    /// For so long.
    pub fn new(patience: Duration) -> Self {
        Self { taken: 0, patience: guest_mem::waits::Patience::new(patience) }
    }

    /// Lets somebody else make progress, more insistently the more turns it has taken already. Returns how long it has
    /// been, once that is over.
    pub fn relax(&mut self) -> Option<Duration> {
        if self.taken < 128 {
            self.taken += 1;
            std::hint::spin_loop();
            return None;
        }
        self.patience.over()
    }
}

/// Turns of a loop that waits for another thread, which comes: loom tells if it does not.
#[cfg(loom)]
#[derive(Debug)]
pub(crate) struct Turns;

#[cfg(loom)]
impl Turns {
    pub fn new(_patience: Duration) -> Self {
        Self
    }

    /// Lets somebody else make progress.
    pub fn relax(&mut self) -> Option<Duration> {
        loom::thread::yield_now();
        None
    }
}
