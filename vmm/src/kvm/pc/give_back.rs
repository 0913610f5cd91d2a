//! What a guest gives back of its own accord (balloon, free page reports) leaves through the same hook as everything
//! else.
//!
//! ```text
//!   device thread: range of guest pages ── where in the host? ── hook: plan, announce ── MADV_DONTNEED or a hole
//!                                                                       └─ Recorder, by cause
//! ```

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_mem::{
    GpaRange, HvaRange, Operation, PageScanner, Planner, Region, ScanError, Unit, perform_unmeasured,
};
use notifier_bridge::{Bridge, Cause, Policy, Recorder, Totals};

use super::memory::PcMemory;
use crate::devices::virtio::balloon::{ReclaimError, Reclaimer};
use crate::hook;

/// Records of single invalidations kept; totals are exact beyond.
const RECORDS: usize = 4096;

/// What was given back, and who is told: shared by the device that takes it and whoever reads the ledger.
#[derive(Clone)]
pub struct GiveBack(Arc<Mutex<State>>);

struct State {
    bridge: Arc<Bridge>,
    recorder: Recorder,
}

impl GiveBack {
    /// An empty ledger; the kernel alone zaps, and what is announced is written down as it announces.
    pub fn new(memory: &PcMemory) -> Self {
        let bridge = Arc::new(Bridge::builder(Policy::Modern, memory.slots()).build());
        Self(Arc::new(Mutex::new(State { bridge, recorder: Recorder::with_capacity(RECORDS) })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sums by cause so far.
    pub fn totals(&self, cause: Cause) -> Totals {
        self.lock().recorder.totals().sum(|key| key.cause == cause)
    }

    /// What was recorded so far, and an empty ledger from now on.
    pub fn take(&self) -> Recorder {
        std::mem::replace(&mut self.lock().recorder, Recorder::with_capacity(RECORDS))
    }
}

impl std::fmt::Debug for GiveBack {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("GiveBack")
    }
}

/// The devices' way to [`GiveBack`].
pub struct Taker {
    memory: Arc<PcMemory>,
    ledger: GiveBack,
    scanner: PageScanner,
    planner: Planner,
}

impl Taker {
    /// A taker of `memory`'s pages that writes into `ledger`.
    ///
    /// # Errors
    /// Page state cannot be read on this host.
    pub fn new(memory: Arc<PcMemory>, ledger: GiveBack) -> Result<Self, ScanError> {
        Ok(Self { memory, ledger, scanner: PageScanner::new()?, planner: Planner::new() })
    }

    fn take(&mut self, region: &Region, range: HvaRange, cause: Cause) -> Result<(), Refused> {
        // Pages of a file leave only with a hole in it.
        let operation = if region.backing().is_shared() { Operation::PunchHole } else { Operation::DontNeed };
        let mut planned = Vec::new();
        self.planner.plan(&mut self.scanner, region, range, Unit::Range, operation, &mut planned)?;
        let mut state = self.ledger.lock();
        let State { bridge, recorder } = &mut *state;
        let call = || perform_unmeasured(region, operation, range);
        hook::announce(bridge, recorder, region, &planned, cause, call)??;
        Ok(())
    }
}

/// Why pages could not be taken.
type Refused = Box<dyn std::error::Error + Send + Sync>;

/// The guest names memory that is none of its own.
#[derive(Debug, thiserror::Error)]
#[error(
    "no memory that the guest can give: it lies outside, under the memory under test, or in a control area"
)]
struct NotOurs;

impl Reclaimer for Taker {
    fn reclaim(&mut self, range: GpaRange, cause: Cause) -> Result<(), ReclaimError> {
        let memory = self.memory.clone();
        let failed = |source| ReclaimError { range, source };
        for (region, part) in memory.to_give_back(range).ok_or_else(|| failed(NotOurs.into()))? {
            self.take(region, part, cause).map_err(failed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use guest_mem::{Backing, Gpa};
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::kvm::Kvm;
    use crate::linux::layout;

    #[test]
    #[ignore = "needs: Kvm"]
    fn what_is_given_back_is_gone_and_counted_by_its_cause() {
        const PAGES: u64 = 3 * guest_mem::PAGE_SIZE;
        for backing in [Backing::Base4k, Backing::Memfd] {
            let nodes = layout::node0(4 << 20).unwrap();
            let memory = PcMemory::new(&Kvm::open().unwrap(), 1, nodes, backing, true).unwrap();
            let (memory, at) = (Arc::new(memory), 1 << 20);
            let view = memory.device_view();
            view.write_obj(7_u64, GuestAddress(at)).unwrap();
            let ledger = GiveBack::new(&memory);
            let mut taker = Taker::new(memory, ledger.clone()).unwrap();
            taker.reclaim(GpaRange::with_len(Gpa::new(at), PAGES).unwrap(), Cause::Balloon).unwrap();
            assert_eq!(view.read_obj::<u64>(GuestAddress(at)).unwrap(), 0, "{backing:?}");
            let needed =
                || [Cause::Balloon, Cause::FreePageReport].map(|cause| ledger.totals(cause).needed_bytes);
            assert_eq!(needed(), [PAGES, 0]);
            assert_eq!(ledger.take().totals().sum(|_| true).needed_bytes, PAGES);
            assert_eq!(needed(), [0, 0]);
        }
    }
}
