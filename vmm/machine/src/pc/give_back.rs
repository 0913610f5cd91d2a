//! Memory that a guest gives back of its own accord (balloon, free page reports) leaves through the same hook as all
//! other memory.
//!
//! ```text
//!   device thread: range of guest pages ── where in the host? ── hook: plan, announce ── MADV_DONTNEED or a hole
//!                                                                       └─ sums by cause
//! ```

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_mem::{GpaRange, HvaRange, Operation, PageScanner, Planner, Region, ScanError, perform};
use notifier_bridge::{Bridge, Cause, InvalidationRecord, Policy};

use super::memory::PcMemory;
use devices::virtio::balloon::{ReclaimError, Reclaimer};
use notifier_bridge::hook;
use notifier_bridge::{GivenBack, Ranges};

/// The sums of memory given back, and the bridge that announces it: shared by the balloon and the machine's user.
#[derive(Clone)]
pub struct GiveBack(Arc<Mutex<State>>);

struct State {
    bridge: Arc<Bridge>,
    given: GivenBack,
    /// Of the operation in progress.
    records: Vec<InvalidationRecord>,
}

impl GiveBack {
    /// Nothing given back yet. Only the kernel zaps; the records follow the rule of the present kernel.
    pub fn new(memory: &PcMemory) -> Self {
        let bridge = Arc::new(Bridge::new(Policy::Modern, memory.slots()));
        Self(Arc::new(Mutex::new(State { bridge, given: GivenBack::default(), records: Vec::new() })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The memory given back so far.
    pub fn so_far(&self) -> GivenBack {
        self.lock().given
    }

    /// The same; the sums begin at zero again.
    pub fn take(&self) -> GivenBack {
        std::mem::take(&mut self.lock().given)
    }
}

impl std::fmt::Debug for GiveBack {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("GiveBack")
    }
}

/// The devices' way to [`GiveBack`].
pub struct BalloonReclaimer {
    memory: Arc<PcMemory>,
    given: GiveBack,
    scanner: PageScanner,
    planner: Planner,
}

impl BalloonReclaimer {
    /// One for `memory`'s pages that adds to `given`.
    ///
    /// # Errors
    /// Page state cannot be read on this host.
    pub fn new(memory: Arc<PcMemory>, given: GiveBack) -> Result<Self, ScanError> {
        Ok(Self { memory, given, scanner: PageScanner::new()?, planner: Planner::new() })
    }

    fn take(&mut self, region: &Region, range: HvaRange, cause: Cause) -> Result<(), Refused> {
        // Pages of a file leave only with a hole in it.
        let operation = if region.backing().is_shared() { Operation::PunchHole } else { Operation::DontNeed };
        let mut planned = Vec::new();
        self.planner.plan(&mut self.scanner, region, range, operation, &mut planned)?;
        let mut state = self.given.lock();
        let State { bridge, given, records } = &mut *state;
        let call = || perform(region, operation, range);
        let done = hook::announce(bridge, records, region, &planned, cause, call);
        let sum = if cause == Cause::Balloon { &mut given.balloon } else { &mut given.reported };
        for record in records.drain(..) {
            *sum += Ranges { ranges: record.ranges, bytes: record.needed_bytes };
        }
        Ok(done?)
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

impl Reclaimer for BalloonReclaimer {
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
    use crate::Kvm;
    use linux_boot::layout;

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
            let given = GiveBack::new(&memory);
            let mut reclaimer = BalloonReclaimer::new(memory, given.clone()).unwrap();
            reclaimer.reclaim(GpaRange::with_len(Gpa::new(at), PAGES).unwrap(), Cause::Balloon).unwrap();
            assert_eq!(view.read_obj::<u64>(GuestAddress(at)).unwrap(), 0, "{backing:?}");
            let bytes = |given: GivenBack| [given.balloon.bytes, given.reported.bytes];
            assert_eq!(bytes(given.so_far()), [PAGES, 0]);
            assert_eq!(bytes(given.take()), [PAGES, 0]);
            assert_eq!(bytes(given.so_far()), [0, 0]);
        }
    }
}
