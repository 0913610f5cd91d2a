//! A Linux guest under KVM as a testbed. One boot serves every row: each gets an arena of its own, which takes the
//! place of the memory that the guest's agent holds for it.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use guest_abi::block::Outcome;
use guest_mem::{Backing, Memory, Region, SlotTable};
use notifier_bridge::ShadowingMmu;
use rustix::thread::Pid;

use super::kvm::{around, shadowing};
use super::linux_machine::LinuxMachine;
use super::{Breaker, GuestSystem, ShellEnd, Testbed};
use experiment::choice::{Reclaim, Zap};
use experiment::events::GivenBack;
use guest::{GuestError, Mailbox};
use machine::{FaultCounts, Leaves, VmCore, VmError};

/// A Linux guest with an arena.
#[derive(Debug)]
pub struct LinuxTestbed {
    core: Arc<VmCore>,
    machine: Rc<LinuxMachine>,
}

impl LinuxTestbed {
    /// Puts an arena into the guest, in place of an earlier one.
    ///
    /// # Errors
    /// [`VmError`]: this host has no such backing, or no room for so many memslots.
    pub fn new(machine: Rc<LinuxMachine>, backing: Backing, granule: u64) -> Result<Self, VmError> {
        let core = machine.lend_arena(backing, granule)?;
        Ok(Self { core, machine })
    }
}

impl Drop for LinuxTestbed {
    fn drop(&mut self) {
        self.machine.take_arena_back();
    }
}

impl Testbed for LinuxTestbed {
    fn arena(&self) -> &Region {
        self.core.arena()
    }
    fn slots(&self) -> &Arc<SlotTable> {
        &self.core.slots
    }
    fn vcpus(&self) -> u32 {
        self.machine.mailboxes().len() as u32
    }
    fn mailbox(&self, vcpu: u32) -> &Mailbox {
        &self.machine.mailboxes()[vcpu as usize]
    }
    fn wait(&self, vcpu: u32, patience: Duration) -> Result<Outcome, GuestError> {
        self.mailbox(vcpu).wait(patience)
    }
    fn shadowing(&self, zap: Zap) -> Option<Arc<dyn ShadowingMmu>> {
        shadowing(&self.core, zap)
    }
    fn around(&self, reclaim: Reclaim, call: &mut dyn FnMut()) {
        around(&self.core.surroundings, reclaim, call);
    }
    fn memory(&self) -> Memory {
        self.core.arena().clone()
    }
    fn breaker(&self) -> Breaker {
        let mailboxes = self.machine.mailboxes().to_vec();
        Breaker { surroundings: Some(self.core.surroundings.clone()), mailboxes }
    }
    fn costs_one_row(&self) -> Option<String> {
        self.machine.costs_one_row()
    }
    fn thread(&self, vcpu: u32) -> Option<Pid> {
        self.core.surroundings.gate.thread(vcpu)
    }
    fn leaves(&self) -> Option<Leaves> {
        self.core.stats.leaves()
    }
    fn fault_counts(&self) -> Option<FaultCounts> {
        self.machine.fault_counts()
    }
    fn remote_tlb_flushes(&self) -> Option<u64> {
        self.core.stats.remote_tlb_flushes()
    }
    fn warm(&self) {
        self.machine.map_own_memory();
    }
    fn system(&self) -> Option<&dyn GuestSystem> {
        Some(self)
    }
    fn first_entry_ns(&self) -> Option<u64> {
        let at = self.core.surroundings.first_entry_ns.load(Ordering::Relaxed);
        (at != 0).then_some(at)
    }
}

impl GuestSystem for LinuxTestbed {
    fn shell(&self, command: &str) -> Result<ShellEnd, GuestError> {
        self.machine.shell(command)
    }
    fn set_balloon(&self, bytes: u64) -> Result<(), GuestError> {
        self.machine.set_balloon(bytes)
    }
    fn take_given_back(&self) -> GivenBack {
        self.machine.take_given_back()
    }
    fn counters(&self) -> Result<std::collections::BTreeMap<String, u64>, GuestError> {
        self.machine.counters()
    }
}
