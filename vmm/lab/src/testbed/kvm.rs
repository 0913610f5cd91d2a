//! A bare guest under KVM as a testbed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use guest_abi::block::Outcome;
use guest_mem::{Memory, Operation, Region, SlotTable};
use notifier_bridge::ShadowingMmu;
use rustix::thread::Pid;

use super::{Breaker, Testbed};
use experiment::choice::{Reclaim, Zap};
use guest::{GuestError, Mailbox};
use machine::{Accounting, FaultCounts, KvmSlots, Leaves, Machine, Surroundings, VmCore, ZapMethod};

/// A bare guest under KVM.
#[derive(Debug)]
pub struct KvmTestbed {
    machine: Machine,
}

impl KvmTestbed {
    /// A machine whose guest is on its way up.
    pub fn new(machine: Machine) -> Self {
        Self { machine }
    }

    /// Waits until its guest is up.
    ///
    /// # Errors
    /// As [`Machine::wait_up`].
    pub fn wait_up(&self) -> Result<(), GuestError> {
        self.machine.wait_up()
    }
}

impl Testbed for KvmTestbed {
    fn arena(&self) -> &Region {
        self.machine.core().arena()
    }
    fn slots(&self) -> &Arc<SlotTable> {
        &self.machine.core().slots
    }
    fn vcpus(&self) -> u32 {
        self.machine.vcpus().len() as u32
    }
    fn mailbox(&self, vcpu: u32) -> &Mailbox {
        self.machine.vcpus()[vcpu as usize].mailbox()
    }
    fn wait(&self, vcpu: u32, patience: Duration) -> Result<Outcome, GuestError> {
        self.machine.wait(vcpu, patience)
    }
    fn shadowing(&self, zap: Zap) -> Option<Arc<dyn ShadowingMmu>> {
        shadowing(self.machine.core(), zap)
    }
    fn around(&self, reclaim: Reclaim, call: &mut dyn FnMut()) {
        around(&self.machine.core().surroundings, reclaim, call);
    }
    fn memory(&self) -> Memory {
        self.machine.core().arena().clone()
    }
    fn breaker(&self) -> Breaker {
        let mailboxes = self.machine.vcpus().iter().map(|vcpu| vcpu.mailbox().clone()).collect();
        Breaker { surroundings: Some(self.machine.core().surroundings.clone()), mailboxes }
    }
    fn thread(&self, vcpu: u32) -> Option<Pid> {
        self.machine.vcpus()[vcpu as usize].thread()
    }
    fn leaves(&self) -> Option<Leaves> {
        self.machine.core().stats.leaves()
    }
    fn fault_counts(&self) -> Option<FaultCounts> {
        self.machine.fault_counts()
    }
    fn remote_tlb_flushes(&self) -> Option<u64> {
        self.machine.core().stats.remote_tlb_flushes()
    }
    fn first_entry_ns(&self) -> Option<u64> {
        let at = self.machine.core().surroundings.first_entry_ns.load(Ordering::Relaxed);
        (at != 0).then_some(at)
    }
}

/// The listener that zaps memslots so.
pub(super) fn shadowing(core: &Arc<VmCore>, zap: Zap) -> Option<Arc<dyn ShadowingMmu>> {
    let method = match zap {
        Zap::Nothing => return None,
        Zap::Memslot => ZapMethod::Memslot,
        Zap::Protect => ZapMethod::Protect,
        Zap::Unmap => ZapMethod::Unmap,
    };
    Some(Arc::new(KvmSlots::new(core.clone(), method, Accounting::On)))
}

/// Performs `call`, which takes memory of running vCPUs so.
pub(super) fn around(surroundings: &Surroundings, reclaim: Reclaim, call: &mut dyn FnMut()) {
    match reclaim {
        // Where a limit is low, too, `KVM_RUN` finds no page and fails.
        Reclaim::By(Operation::Protect) | Reclaim::Cgroup => {
            let _window = surroundings.window.open();
            call();
        }
        // What is written to the range while it is elsewhere would be lost.
        Reclaim::By(Operation::Remap) => {
            // A guest that cannot be held is at its end: what it would lose is lost with it.
            let _hold = surroundings.gate.hold();
            call();
        }
        _ => call(),
    }
}
