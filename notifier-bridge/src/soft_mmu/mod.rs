//! A software secondary MMU: a shadow table over the memslots, kept in step by the kernel's retry protocol.
//!
//! It is two things at once: the secondary MMU of a device where there is no KVM, and the model that the
//! policies are tested against.
//!
//! ```text
//!              Worker::access(gpa) ── entry? ── yes ──> use the frame, inside the worker's epoch
//!                    ^                  no
//!                    │                  v
//!                    └── install <── SoftFault: snapshot, resolve (PrimaryMmu), mmu_lock, retry?
//!
//!   invalidate_range_start:  mmu_lock { begin, add to the hull, zap, wait for workers inside }   spte.rs  the entry
//!        … the primary MMU changes …                                                             table.rs the table
//!   invalidate_range_end:    mmu_lock { sequence + 1, count - 1 }                                fault.rs, epoch.rs
//! ```
//!
//! A difference from KVM, on the strict side: a 2 MiB entry is installed only if *no* page under it is in progress
//! (`fault.rs` says why).

mod cell;
#[cfg(not(loom))]
mod epoch;
#[cfg(loom)]
pub mod epoch;
mod fault;
mod spte;
mod table;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::Arc;

use guest_mem::{Gpa, HvaRange, SlotTable};

pub use self::cell::WorkerStats;
pub use self::worker::Worker;

use self::cell::WorkerCell;
use self::table::{Dropped, ShadowTable, gfns_of};
use crate::count::Count;
use crate::listener::{Listener, Shadowing, ShadowingMmu, Zapped};
use crate::primary::{PrimaryMmu, ResolveError};
use crate::sequence::Sequence;

/// An access that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// The guest physical address belongs to no memslot.
    #[error("guest physical address {0} lies in no memslot")]
    NoSlot(Gpa),
    /// The primary MMU has no page to give.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
}

/// The counters of a [`SoftMmu`]. Names as in KVM's VM statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SoftMmuStats {
    /// Leaf entries of 4 KiB now.
    pub pages_4k: u64,
    /// Leaf entries of 2 MiB now.
    pub pages_2m: u64,
    /// Leaf entries of 4 KiB dropped by invalidations.
    pub sptes_zapped_4k: u64,
    /// Leaf entries of 2 MiB dropped by invalidations.
    pub sptes_zapped_2m: u64,
    /// Times every worker was waited for.
    pub remote_tlb_flushes: u64,
    /// The sums over all workers, also those that are gone.
    pub workers: WorkerStats,
}

/// The data that `mmu_lock` guards beside the sequence.
#[derive(Default)]
struct Guarded {
    workers: Vec<Arc<WorkerCell>>,
    /// Of the workers that are gone.
    retired: WorkerStats,
    pages_4k: u64,
    pages_2m: u64,
    zapped: Dropped,
    remote_tlb_flushes: u64,
    /// Entries were dropped and their users not waited for: the next invalidation waits, even if it drops none itself.
    flush_pending: bool,
}

impl Guarded {
    /// Entries were dropped from the table.
    fn forget(&mut self, dropped: Dropped) {
        self.pages_4k -= dropped.pte;
        self.pages_2m -= dropped.pmd;
    }

    /// Waits until no worker uses a dropped entry any more. It stays pending if a worker does not leave its access.
    fn flush_remote_tlbs(&mut self) {
        let done = self.workers.iter().all(|worker| worker.epoch.wait_outside());
        self.flush_pending = !done;
        self.remote_tlb_flushes += u64::from(done);
    }
}

/// A software shadow page table over the memslots of a VM.
pub struct SoftMmu<P> {
    primary: P,
    slots: Arc<SlotTable>,
    table: ShadowTable,
    /// Holds the `mmu_lock`, under which alone the table changes.
    sequence: Sequence<Guarded>,
}

impl<P: PrimaryMmu> SoftMmu<P> {
    /// An empty shadow table: 8 bytes for each page of guest memory.
    pub fn new(primary: P, slots: Arc<SlotTable>) -> Self {
        let table = ShadowTable::new(&slots);
        Self { primary, slots, table, sequence: Sequence::new(Guarded::default()) }
    }

    /// Its counters. Those of running workers may be a moment old.
    pub fn stats(&self) -> SoftMmuStats {
        let locked = self.sequence.lock();
        let mut workers = locked.retired;
        for worker in &locked.workers {
            workers += worker.stats();
        }
        SoftMmuStats {
            pages_4k: locked.pages_4k,
            pages_2m: locked.pages_2m,
            sptes_zapped_4k: locked.zapped.pte,
            sptes_zapped_2m: locked.zapped.pmd,
            remote_tlb_flushes: locked.remote_tlb_flushes,
            workers,
        }
    }

    /// Removes a worker and keeps its counts.
    fn retire(&self, cell: &Arc<WorkerCell>) {
        let mut locked = self.sequence.lock();
        locked.workers.retain(|worker| !Arc::ptr_eq(worker, cell));
        locked.retired += cell.stats();
    }
}

impl<P: PrimaryMmu> Listener for SoftMmu<P> {
    type Kind = Shadowing;
}

impl<P: PrimaryMmu> ShadowingMmu for SoftMmu<P> {
    /// As `kvm_mmu_notifier_invalidate_range_start`: the bracket begins only if a slot is found, which the
    /// end finds out in the same way, since slots do not change.
    fn invalidate_range_start(&self, range: HvaRange) -> Zapped {
        let covered = self.slots.covering(range);
        if covered.is_empty() {
            return Zapped::NOTHING;
        }
        let mut locked = self.sequence.lock();
        locked.invalidate_begin();
        let (mut dropped, mut slots) = (Dropped::default(), 0);
        for slot in covered {
            let gfns = gfns_of(slot, range);
            locked.invalidate_range_add(gfns);
            let here = self.table.zap(slot, gfns);
            slots += u64::from(!here.is_nothing());
            dropped += here;
        }
        locked.forget(dropped);
        locked.zapped += dropped;
        if locked.flush_pending || !dropped.is_nothing() {
            locked.flush_remote_tlbs();
        }
        Zapped {
            slots,
            bytes: dropped.bytes(),
            sptes_4k: Count::of(dropped.pte),
            sptes_2m: Count::of(dropped.pmd),
        }
    }

    fn invalidate_range_end(&self, range: HvaRange) {
        if !self.slots.covering(range).is_empty() {
            self.sequence.lock().invalidate_end();
        }
    }
}
