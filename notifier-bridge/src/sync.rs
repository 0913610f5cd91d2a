//! The atomics and the locks of the protocols: the standard library's, or under `--cfg loom` those
//! that loom explores every interleaving of.

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

#[cfg(not(loom))]
pub(crate) use std::sync::TryLockError;

/// The lock, whatever a thread that panicked while holding it may have left: every section under it leaves
/// the data whole at each step that can panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Lets somebody else make progress, more insistently the more turns it has taken already.
#[cfg(not(loom))]
pub(crate) fn relax(turn: u32) {
    if turn < 128 { std::hint::spin_loop() } else { std::thread::yield_now() }
}

/// Lets somebody else make progress.
#[cfg(loom)]
pub(crate) fn relax(_turn: u32) {
    loom::thread::yield_now();
}
