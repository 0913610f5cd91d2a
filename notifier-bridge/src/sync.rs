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

/// Takes the lock, also after a thread panicked while holding it: every section under it leaves the data whole at each
/// step that can panic.
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
    /// With this deadline.
    pub fn new(patience: Duration) -> Self {
        Self { taken: 0, patience: guest_mem::waits::Patience::new(patience) }
    }

    /// Lets other threads run: spins at first, then yields. Returns the time that was allowed, once it is over.
    pub fn relax(&mut self) -> Option<Duration> {
        if self.taken < 128 {
            self.taken += 1;
            std::hint::spin_loop();
            return None;
        }
        self.patience.over()
    }
}

/// Turns of a loop that waits for another thread. loom reports a wait without end.
#[cfg(loom)]
#[derive(Debug)]
pub(crate) struct Turns;

#[cfg(loom)]
impl Turns {
    pub fn new(_patience: Duration) -> Self {
        Self
    }

    /// Lets other threads run.
    pub fn relax(&mut self) -> Option<Duration> {
        loom::thread::yield_now();
        None
    }
}
