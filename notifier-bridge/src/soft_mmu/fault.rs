//! A fault of the secondary MMU, phase by phase. Each phase is a type, so none can be left out or swapped.
//!
//! ```text
//!   SoftFault ── snapshot ──> Snapshotted ── resolve ──> Resolved ── install ──> Fixed
//!     ^      (no lock)       (no lock, may sleep)       (mmu_lock)      ├──> Spurious   another installed it
//!     └─────────────────────────────────────────────────────────────────┴─── Retry      it was invalidated
//! ```
//!
//! As `kvm_tdp_page_fault`: `kvm_faultin_pfn` takes the snapshot and looks the page up, then, with `mmu_lock`
//! held, `is_page_fault_stale` asks whether that still holds, then the entry is installed.

use std::time::Duration;

use guest_mem::waits::{Overdue, Patience};
use guest_mem::{Gfn, Hva, MapLevel, Memslot, PAGE_SIZE, PAGES_PER_PMD};

use super::SoftMmu;
use super::cell::WorkerCell;
use super::spte::Spte;
use crate::primary::{Frame, Mapping, PrimaryMmu, ResolveError};
use crate::sequence::Snapshot;

/// How long a fault is retried while invalidations are in progress: longer than any operation on a range takes.
const BRACKET: Duration = Duration::from_secs(300);

/// One fault, before its snapshot.
pub(super) struct SoftFault<'m, P> {
    pub(super) mmu: &'m SoftMmu<P>,
    pub(super) slot: Memslot,
    pub(super) gfn: Gfn,
    pub(super) write: bool,
}

/// The sequence is known, the page is not.
pub(super) struct Snapshotted<'m, P> {
    fault: SoftFault<'m, P>,
    snapshot: Snapshot,
}

/// The page is known, and may be gone again.
pub(super) struct Resolved<'m, P: PrimaryMmu> {
    fault: SoftFault<'m, P>,
    snapshot: Snapshot,
    mapping: Mapping<P::Frame>,
}

/// How a fault ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Installed {
    /// A translation was installed.
    Fixed,
    /// One was there already.
    Spurious,
    /// The page may be gone: begin again.
    Retry,
}

impl<P: PrimaryMmu> SoftMmu<P> {
    /// Makes one page accessible, beginning again for as long as invalidations get in the way.
    #[inline(never)]
    pub(super) fn fault(
        &self,
        cell: &WorkerCell,
        slot: &Memslot,
        gfn: Gfn,
        write: bool,
    ) -> Result<(), ResolveError> {
        cell.pf_taken.raise();
        let mut patience = Patience::new(BRACKET);
        loop {
            let fault = SoftFault { mmu: self, slot: *slot, gfn, write }.snapshot();
            let outcome = if fault.is_hopeless() { Installed::Retry } else { fault.resolve()?.install() };
            match outcome {
                Installed::Fixed => cell.pf_fixed.raise(),
                Installed::Spurious => cell.pf_spurious.raise(),
                Installed::Retry => {
                    cell.retries.raise();
                    if let Some(waited) = patience.over() {
                        let what = format!("the invalidations that keep guest page {gfn} out to end");
                        return Err(Overdue::new(what, waited).into());
                    }
                    continue;
                }
            }
            return Ok(());
        }
    }
}

impl<'m, P: PrimaryMmu> SoftFault<'m, P> {
    pub(super) fn snapshot(self) -> Snapshotted<'m, P> {
        let snapshot = self.mmu.sequence.snapshot();
        Snapshotted { fault: self, snapshot }
    }

    fn hva(&self) -> Hva {
        let pages = self.gfn.get() - self.slot.gpa_range().gfns().start().get();
        Hva::new(self.slot.hva_range().start().get() + pages * PAGE_SIZE)
    }
}

impl<'m, P: PrimaryMmu> Snapshotted<'m, P> {
    /// Whether the fault would most likely have to begin again, so that the look-up is skipped.
    pub(super) fn is_hopeless(&self) -> bool {
        self.fault.mmu.sequence.retry_unsafe(self.snapshot, self.fault.gfn)
    }

    pub(super) fn resolve(self) -> Result<Resolved<'m, P>, ResolveError> {
        let hva = self.fault.hva();
        let mapping = self.fault.mmu.primary.resolve(hva, self.fault.write)?;
        if self.fault.write && !mapping.writable {
            return Err(ResolveError::ReadOnly(hva));
        }
        Ok(Resolved { fault: self.fault, snapshot: self.snapshot, mapping })
    }
}

impl<P: PrimaryMmu> Resolved<'_, P> {
    pub(super) fn install(self) -> Installed {
        let SoftFault { mmu, slot, gfn, write } = self.fault;
        let mut locked = mmu.sequence.lock();
        if locked.retry_locked(self.snapshot, gfn) {
            return Installed::Retry;
        }
        if mmu.table.look_up(&slot, gfn).allows(write) {
            return Installed::Spurious;
        }
        let Mapping { frame, level, writable } = self.mapping;
        let index = gfn.get() % PAGES_PER_PMD;
        // The retry check above covers one gfn; a 2 MiB entry would map 511 others, and some of them may be
        // under invalidation. KVM may look at the one gfn only: by then the host has split its own PMD, and
        // has announced all 2 MiB of it. A policy here need not have.
        let region = mmu.table.large_region(&slot, gfn).filter(|region| {
            level == MapLevel::Pmd
                && frame.pfn() % PAGES_PER_PMD == index
                && !locked.overlaps_in_progress(*region)
        });
        let replaced = match region {
            Some(region) => {
                locked.pages_2m += 1;
                mmu.table.install_pmd(&slot, region, Spte::new(frame.pfn() - index, writable))
            }
            None => {
                locked.pages_4k += 1;
                mmu.table.install_pte(&slot, gfn, Spte::new(frame.pfn(), writable))
            }
        };
        // A 2 MiB entry replaced by one of 4 KiB leaves 511 pages without an entry, and maybe with a worker
        // inside: the next invalidation must wait for it though it finds nothing to drop.
        locked.flush_pending |= region.is_none() && replaced.pmd > 0;
        locked.forget(replaced);
        Installed::Fixed
    }
}
