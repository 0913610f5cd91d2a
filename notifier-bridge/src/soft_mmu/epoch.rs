//! How an invalidation knows that no worker uses a dropped translation any more: an epoch for each worker.
//!
//! ```text
//!   worker                                        invalidation (holds mmu_lock)
//!   ──────                                        ────────────
//!   epoch: even -> odd      (inside an access)    clear the entries
//!   full barrier                                  full barrier
//!   read the entry, use the frame                 epoch odd?  wait until it changes
//!   epoch: odd -> even      (release)             the old translation is not in use any more
//! ```
//!
//! One of the two sees the other: either the worker finds the entry cleared, or the invalidation finds the
//! epoch odd. The kernel does the same with `vcpu->mode`: `walk_shadow_page_lockless_begin`/`_end` in
//! `arch/x86/kvm/mmu/mmu.c` against `kvm_flush_remote_tlbs`, whose IPI the waiting here stands for.
//! Without either barrier, both can miss the other; `tests/loom.rs` shows it.

use std::marker::PhantomData;
use std::time::Duration;

use guest_mem::waits::{Overdue, WAKE};

use crate::sync::{AtomicU64, Ordering, Turns, fence};

/// The full barrier on both sides, as a trait: the model checker removes it to see the protocol fail.
pub trait Barrier {
    /// Orders every access before it against every access after it.
    fn full();
}

/// `smp_mb()`.
#[derive(Debug)]
pub enum SmpMb {}

impl Barrier for SmpMb {
    fn full() {
        fence(Ordering::SeqCst);
    }
}

/// One worker's epoch: odd while it is inside an access.
#[derive(Debug)]
pub struct Epoch<B = SmpMb> {
    count: AtomicU64,
    barrier: PhantomData<fn() -> B>,
}

/// Inside an access. Dropped, also by a panic, it leaves.
#[derive(Debug)]
pub struct Inside<'a>(&'a AtomicU64);

impl<B> Default for Epoch<B> {
    /// The epoch of a worker that is outside.
    fn default() -> Self {
        Self { count: AtomicU64::new(0), barrier: PhantomData }
    }
}

impl<B: Barrier> Epoch<B> {
    /// Enters an access; the drop of what it returns leaves again. Only the owner may enter, and one access
    /// at a time. Its counterpart in the invalidation is [`wait_outside`](Self::wait_outside).
    pub fn enter(&self) -> Inside<'_> {
        let count = self.count.load(Ordering::Relaxed);
        debug_assert_eq!(count % 2, 0, "a worker enters one access at a time");
        self.count.store(count + 1, Ordering::Relaxed);
        // The epoch is out before an entry is read. Pairs with the barrier in `wait_outside`.
        B::full();
        Inside(&self.count)
    }

    /// Waits until the worker has left the access it is in, if any. Entries have been cleared before. Returns `false`, and
    /// reports it, if the worker has not left within [`WAKE`].
    pub fn wait_outside(&self) -> bool {
        self.wait_outside_for(WAKE).map_err(|overdue| overdue.tell()).is_ok()
    }

    fn wait_outside_for(&self, patience: Duration) -> Result<(), Overdue> {
        // The cleared entries are out before the epoch is read. Pairs with the barrier in `enter`.
        B::full();
        let count = self.count.load(Ordering::Acquire);
        if count.is_multiple_of(2) {
            return Ok(());
        }
        let mut turns = Turns::new(patience);
        while self.count.load(Ordering::Acquire) == count {
            if let Some(waited) = turns.relax() {
                return Err(Overdue::new(
                    "a worker of the software MMU to leave the page that it uses",
                    waited,
                ));
            }
        }
        Ok(())
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let count = self.0.load(Ordering::Relaxed);
        // Every use of the frame is done before the epoch says so. Pairs with the loads in `wait_outside`.
        self.0.store(count + 1, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// An invalidation that waits for the end of an access tells it from the next one by the count.
    #[test]
    fn no_two_accesses_have_the_same_epoch() {
        let epoch = Epoch::<SmpMb>::default();
        let seen = [(); 3].map(|()| epoch.enter().0.load(Ordering::Relaxed));
        assert!(seen.is_sorted_by(|one, next| one < next), "{seen:?}");
        assert_eq!(epoch.wait_outside_for(Duration::ZERO), Ok(()));
    }

    #[test]
    fn the_wait_for_a_worker_that_does_not_leave_ends() {
        let epoch = Epoch::<SmpMb>::default();
        let inside = epoch.enter();
        let overdue = epoch.wait_outside_for(Duration::from_millis(20)).unwrap_err().to_string();
        assert!(
            overdue.contains(" waited 20 ms for a worker of the software MMU to leave the page"),
            "{overdue}"
        );
        drop(inside);
        assert_eq!(epoch.wait_outside_for(Duration::ZERO), Ok(()));
    }
}
