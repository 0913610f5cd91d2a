//! A worker: one device thread's view of the software MMU.
//!
//! It reads the shadow table without a lock, inside its [epoch](super::epoch), faults where there is no
//! entry, and counts what it did in counters only it writes.
//!
//! A worker that faults is *not* inside an access: it leaves before it asks the primary MMU, so an
//! invalidation never waits for a page to come in.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use guest_mem::{Gpa, Memslot, PAGE_SIZE};

use super::epoch::{Epoch, SmpMb};
use super::{AccessError, SoftMmu};
use crate::primary::{Frame, PrimaryMmu};

/// What one worker did. Names as in KVM's vCPU statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct WorkerStats {
    /// Accesses that reached their page.
    pub accesses: u64,
    /// Faults taken.
    pub pf_taken: u64,
    /// Faults that installed a translation.
    pub pf_fixed: u64,
    /// Faults that found the translation already installed by somebody else.
    pub pf_spurious: u64,
    /// Times a fault began again, since an invalidation was in progress or had overtaken it.
    pub retries: u64,
}

impl std::ops::AddAssign for WorkerStats {
    fn add_assign(&mut self, other: Self) {
        let Self { accesses, pf_taken, pf_fixed, pf_spurious, retries } = other;
        self.accesses += accesses;
        self.pf_taken += pf_taken;
        self.pf_fixed += pf_fixed;
        self.pf_spurious += pf_spurious;
        self.retries += retries;
    }
}

/// A counter only its owner writes and anybody may read.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn raise(&self) {
        // One writer, so no read-modify-write is needed.
        self.0.store(self.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The part of a worker that other threads see, on cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct WorkerCell {
    pub(super) epoch: Epoch<SmpMb>,
    pub(super) accesses: Counter,
    pub(super) pf_taken: Counter,
    pub(super) pf_fixed: Counter,
    pub(super) pf_spurious: Counter,
    pub(super) retries: Counter,
}

impl WorkerCell {
    pub(super) fn new() -> Self {
        Self {
            epoch: Epoch::new(),
            accesses: Counter::default(),
            pf_taken: Counter::default(),
            pf_fixed: Counter::default(),
            pf_spurious: Counter::default(),
            retries: Counter::default(),
        }
    }

    pub(super) fn stats(&self) -> WorkerStats {
        WorkerStats {
            accesses: self.accesses.get(),
            pf_taken: self.pf_taken.get(),
            pf_fixed: self.pf_fixed.get(),
            pf_spurious: self.pf_spurious.get(),
            retries: self.retries.get(),
        }
    }
}

/// One device thread's handle. It faults, retries and counts on its own.
pub struct Worker<P: PrimaryMmu> {
    mmu: Arc<SoftMmu<P>>,
    cell: Arc<WorkerCell>,
    /// The slot of the access before, where the next one most likely falls too.
    last_slot: Option<Memslot>,
}

impl<P: PrimaryMmu> Worker<P> {
    pub(super) fn new(mmu: Arc<SoftMmu<P>>, cell: Arc<WorkerCell>) -> Self {
        Self { mmu, cell, last_slot: None }
    }

    /// Reaches the byte at `gpa`: `f` gets the frame of its 4 KiB page and the offset in it. The translation
    /// is valid for as long as `f` runs: an invalidation of it waits.
    ///
    /// So `f` must be short, must not perform an operation that goes through the bridge, and must not use
    /// another worker of the same MMU: each would wait for itself.
    ///
    /// # Errors
    /// No slot there, or the primary MMU has no such page.
    pub fn access<R>(
        &mut self,
        gpa: Gpa,
        write: bool,
        f: impl FnOnce(P::Frame, u64) -> R,
    ) -> Result<R, AccessError> {
        let slot = self.slot(gpa)?;
        loop {
            let inside = self.cell.epoch.enter();
            let spte = self.mmu.table.look_up(&slot, gpa.gfn());
            if spte.allows(write) {
                let result = f(P::Frame::from_pfn(spte.pfn()), gpa.get() % PAGE_SIZE);
                drop(inside);
                self.cell.accesses.raise();
                return Ok(result);
            }
            drop(inside);
            self.mmu.fault(&self.cell, &slot, gpa.gfn(), write)?;
        }
    }

    /// What this worker did so far.
    pub fn stats(&self) -> WorkerStats {
        self.cell.stats()
    }

    fn slot(&mut self, gpa: Gpa) -> Result<Memslot, AccessError> {
        if let Some(slot) = self.last_slot.filter(|slot| slot.gpa_range().contains(gpa)) {
            return Ok(slot);
        }
        let slot = *self.mmu.slots.find_gpa(gpa).ok_or(AccessError::NoSlot(gpa))?;
        self.last_slot = Some(slot);
        Ok(slot)
    }
}

impl<P: PrimaryMmu> Drop for Worker<P> {
    fn drop(&mut self) {
        self.mmu.retire(&self.cell);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_workers_did_adds_up_field_by_field() {
        let of = |n: u64| WorkerStats {
            accesses: n,
            pf_taken: 2 * n,
            pf_fixed: 3 * n,
            pf_spurious: 4 * n,
            retries: 5 * n,
        };
        let mut sum = of(10);
        sum += of(1);
        assert_eq!(sum, of(11));
    }
}
