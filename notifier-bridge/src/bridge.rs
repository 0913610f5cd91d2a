//! The bridge: announces an operation on guest memory to its listeners, performs it, and records it.
//!
//! ```text
//!   Bridge::invalidate(records, invalidation, operation)
//!     │  Policy::calls ──> Start(r) ──────────────> Chain::start ──> every ShadowingMmu   ┐ Walk::open
//!     │                    …                                                              ┘
//!     │                    Operation ─────────────> operation()
//!     │                    InvalidateRange(r) ────> Chain::flush ──> every SharingMmu     ┐
//!     │                    InvalidatePage(r) ─────> Chain::page ───> every listener       │ Walk::close
//!     │                    InvalidateRangeAgain(r) > Chain::flush                         │
//!     │                    End(r) ────────────────> Chain::end                            ┘
//!     └─ InvalidationRecord ──> records
//!
//!   a start panicked:        Ends of what was started, innermost first; the operation is not run
//!   the operation panicked:  the rest of the calls as if it had returned, since it may have changed
//!                            something; no record is made
//! ```
//!
//! The bridge holds no lock and no state of its own: brackets of several threads overlap freely, as they
//! do in the kernel, and the listeners' sequence count orders them.

use std::sync::Arc;

use guest_mem::SlotTable;

use crate::calls::{Call, Calls};
use crate::chain::Chain;
use crate::clock::monotonic_ns;
use crate::event::Invalidation;
use crate::listener::{ShadowingMmu, SharingMmu};
use crate::policy::Policy;
use crate::record::InvalidationRecord;

/// The stand-in `mmu_notifier` chain of one VM.
pub struct Bridge {
    policy: Policy,
    slots: Arc<SlotTable>,
    chain: Chain,
}

impl Bridge {
    /// A bridge with no listeners.
    pub fn new(policy: Policy, slots: Arc<SlotTable>) -> Self {
        Self { policy, slots, chain: Chain::default() }
    }

    /// Registers a listener with translations of its own. Listeners are told in order of registration.
    #[must_use]
    pub fn shadowing(mut self, listener: Arc<dyn ShadowingMmu>) -> Self {
        self.chain.shadowing.push(listener);
        self
    }

    /// Registers a listener that shares the CPU's page tables.
    #[must_use]
    pub fn sharing(mut self, listener: Arc<dyn SharingMmu>) -> Self {
        self.chain.sharing.push(listener);
        self
    }

    /// Announces `invalidation`, performs `operation`, ends the brackets, and adds one record to `records`. Allocates nothing
    /// if `records` has room.
    ///
    /// `operation` is the change of the primary MMU (a `madvise`, a `munmap`). It must not wait for anything
    /// that faults through a listener of this bridge: such a fault waits for the end of the bracket.
    pub fn invalidate<R>(
        &self,
        records: &mut Vec<InvalidationRecord>,
        invalidation: &Invalidation,
        operation: impl FnOnce() -> R,
    ) -> R {
        let mut walk = Walk::new(self, invalidation);
        walk.open();
        let result = operation();
        records.push(*walk.close());
        result
    }
}

/// Where a walk through the calls stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Before the operation: to stop here means that a start panicked; those before it are ended.
    Opening,
    /// The operation may have changed something: to stop here is to make the rest of the calls.
    Operating,
    /// Nothing is open.
    Closed,
}

/// One walk through the calls of one invalidation. Dropped early, it leaves no bracket open.
struct Walk<'a> {
    chain: &'a Chain,
    calls: Calls<'a>,
    stage: Stage,
    record: InvalidationRecord,
    /// When the part being timed began.
    lap_ns: u64,
}

impl<'a> Walk<'a> {
    fn new(bridge: &'a Bridge, invalidation: &Invalidation) -> Self {
        let lap_ns = monotonic_ns();
        Self {
            chain: &bridge.chain,
            calls: invalidation.rule(bridge.policy).calls(
                &invalidation.victim,
                invalidation.vma,
                &bridge.slots,
            ),
            stage: Stage::Opening,
            record: InvalidationRecord::begun(invalidation, lap_ns),
            lap_ns,
        }
    }

    /// Every call before the operation. Its other half is [`Walk::close`].
    fn open(&mut self) {
        while let Some(Call::Start(range)) = self.calls.next() {
            self.record.tell(range);
            self.chain.start(range, &mut self.record.zapped);
        }
        self.record.zap_ns = self.lap();
        self.stage = Stage::Operating;
    }

    /// Every call after the operation. Its other half is [`Walk::open`].
    fn close(&mut self) -> &InvalidationRecord {
        self.record.operation_ns = self.lap();
        let mut ending = false;
        while let Some(call) = self.calls.next() {
            if !ending && matches!(call, Call::InvalidateRangeAgain(_) | Call::End(_)) {
                ending = true;
                // Skip the clock read when there are no sharing listeners: it costs more than the rest of this step.
                if !self.chain.sharing.is_empty() {
                    self.record.zap_ns += self.lap();
                }
            }
            self.dispatch(call);
        }
        self.stage = Stage::Closed;
        let last = self.lap();
        if ending {
            self.record.end_ns = last
        } else {
            self.record.zap_ns += last
        }
        &self.record
    }

    /// Ends every bracket opened before the one whose start panicked. That one the chain has ended itself.
    fn abandon(&mut self) {
        self.stage = Stage::Closed;
        self.calls.unwind().skip(1).for_each(|range| self.chain.end(range));
    }

    fn dispatch(&mut self, call: Call) {
        match call {
            Call::Start(_) | Call::Operation => {}
            Call::InvalidateRange(range) => {
                self.record.sharing_calls += 1;
                self.chain.flush(range);
            }
            Call::InvalidateRangeAgain(range) => {
                self.record.sharing_calls += 1;
                self.record.double_calls += 1;
                self.chain.flush(range);
            }
            Call::InvalidatePage(page) => {
                self.record.tell(page);
                self.record.sharing_calls += 1;
                self.record.zapped += self.chain.page(page);
            }
            Call::End(range) => self.chain.end(range),
        }
    }

    /// Nanoseconds since the lap before.
    fn lap(&mut self) -> u64 {
        let now = monotonic_ns();
        now - std::mem::replace(&mut self.lap_ns, now)
    }
}

impl Drop for Walk<'_> {
    /// A walk that came to its end has no calls left, and this does nothing.
    fn drop(&mut self) {
        match self.stage {
            Stage::Opening => self.abandon(),
            Stage::Operating => {
                while let Some(call) = self.calls.next() {
                    self.dispatch(call);
                }
            }
            Stage::Closed => {}
        }
    }
}

#[cfg(test)]
mod tests;
