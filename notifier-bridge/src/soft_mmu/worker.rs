//! A worker: one device thread's view of the software MMU.
//!
//! It reads the shadow table without a lock, inside its [epoch](super::epoch), faults where there is no
//! entry, and counts in counters that only it writes.
//!
//! A worker that faults is *not* inside an access: it leaves before it asks the primary MMU, so an
//! invalidation never waits for a page to come in.

use std::sync::Arc;

use guest_mem::{Gpa, Memslot, PAGE_SIZE};

use super::cell::{WorkerCell, WorkerStats};
use super::{AccessError, SoftMmu};
use crate::primary::{Frame, PrimaryMmu};

/// One device thread's handle. It faults, retries and counts on its own.
pub struct Worker<P: PrimaryMmu> {
    mmu: Arc<SoftMmu<P>>,
    cell: Arc<WorkerCell>,
    /// The slot of the access before, where the next one most likely falls too.
    last_slot: Option<Memslot>,
}

impl<P: PrimaryMmu> SoftMmu<P> {
    /// A handle for one device thread.
    pub fn worker(self: &Arc<Self>) -> Worker<P> {
        let cell = Arc::new(WorkerCell::default());
        self.sequence.lock().workers.push(Arc::clone(&cell));
        Worker { mmu: Arc::clone(self), cell, last_slot: None }
    }
}

impl<P: PrimaryMmu> Worker<P> {
    /// Reaches the byte at `gpa`: `f` gets the frame of its 4 KiB page and the offset in it. The translation
    /// is valid for as long as `f` runs: an invalidation of it waits.
    ///
    /// So `f` must be short, must not perform an operation that goes through the bridge, and must not use another worker of
    /// the same MMU: either would deadlock.
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

    /// Its counters so far.
    pub fn stats(&self) -> WorkerStats {
        self.cell.stats()
    }

    fn slot(&mut self, gpa: Gpa) -> Result<Memslot, AccessError> {
        match self.last_slot {
            Some(slot) if slot.contains(gpa) => Ok(slot),
            _ => self.find_slot(gpa),
        }
    }

    #[cold]
    fn find_slot(&mut self, gpa: Gpa) -> Result<Memslot, AccessError> {
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
