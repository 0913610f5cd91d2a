//! A guest under KVM as a testbed. A bare guest serves one row. A Linux guest is booted once for all rows: each puts an arena
//! of its own in place of the memory that the guest's agent holds for it.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use guest_abi::block::Outcome;
use guest_mem::{Backing, DuringCall, Memory, Region, SlotTable};
use notifier_bridge::ShadowingMmu;
use rustix::thread::Pid;

use super::linux_machine::LinuxMachine;
use super::{Breaker, GuestSystem, Testbed};
use experiment::choice::{Reclaim, Zap};
use guest::{GuestError, Mailbox};
use machine::{Accounting, FaultCounts, KvmSlots, Leaves, Machine, VmCore, VmError, ZapMethod};

/// A guest under KVM, with an arena.
#[derive(Debug)]
pub struct KvmTestbed {
    core: Arc<VmCore>,
    guest: Guest,
}

#[derive(Debug)]
enum Guest {
    Bare(Machine),
    Linux(Rc<LinuxMachine>),
}

impl KvmTestbed {
    /// A bare guest, once it is up.
    pub fn bare(machine: Machine) -> Self {
        Self { core: machine.core().clone(), guest: Guest::Bare(machine) }
    }

    /// Puts an arena into a Linux guest, in place of an earlier one.
    ///
    /// # Errors
    /// This host has no such backing, or no room for so many memslots.
    pub fn linux(machine: Rc<LinuxMachine>, backing: Backing, granule: u64) -> Result<Self, VmError> {
        Ok(Self { core: machine.lend_arena(backing, granule)?, guest: Guest::Linux(machine) })
    }

    fn mailboxes(&self) -> Vec<&Arc<Mailbox>> {
        match &self.guest {
            Guest::Bare(machine) => machine.vcpus().iter().map(|vcpu| vcpu.mailbox()).collect(),
            Guest::Linux(machine) => machine.mailboxes().iter().collect(),
        }
    }
}

impl Drop for KvmTestbed {
    fn drop(&mut self) {
        if let Guest::Linux(machine) = &self.guest {
            machine.take_arena_back();
        }
    }
}

impl Testbed for KvmTestbed {
    fn arena(&self) -> &Region {
        self.core.arena()
    }
    fn slots(&self) -> &Arc<SlotTable> {
        &self.core.slots
    }
    fn vcpus(&self) -> u32 {
        self.mailboxes().len() as u32
    }
    fn mailbox(&self, vcpu: u32) -> &Mailbox {
        match &self.guest {
            Guest::Bare(machine) => machine.vcpus()[vcpu as usize].mailbox(),
            Guest::Linux(machine) => &machine.mailboxes()[vcpu as usize],
        }
    }
    fn wait(&self, vcpu: u32, patience: Duration) -> Result<Outcome, GuestError> {
        match &self.guest {
            Guest::Bare(machine) => machine.wait(vcpu, patience),
            Guest::Linux(_) => self.mailbox(vcpu).wait(patience),
        }
    }
    fn shadowing(&self, zap: Zap) -> Option<Arc<dyn ShadowingMmu>> {
        let method = match zap {
            Zap::Nothing => return None,
            Zap::Memslot => ZapMethod::Memslot,
            Zap::Protect => ZapMethod::Protect,
            Zap::Unmap => ZapMethod::Unmap,
        };
        Some(Arc::new(KvmSlots::new(self.core.clone(), method, Accounting::On)))
    }
    fn around(&self, reclaim: Reclaim, call: &mut dyn FnMut()) {
        match reclaim.during_call() {
            DuringCall::Usable => call(),
            DuringCall::ReadOnly => {
                let _window = self.core.shared.window.open();
                call();
            }
            DuringCall::Empty => {
                // A guest that cannot be held is at its end: what it would lose is lost with it.
                let _hold = self.core.shared.gate.hold();
                call();
            }
        }
    }
    fn memory(&self) -> Memory {
        self.core.arena().clone()
    }
    fn breaker(&self) -> Breaker {
        let mailboxes = self.mailboxes().into_iter().cloned().collect();
        Breaker { shared: Some(self.core.shared.clone()), mailboxes }
    }
    fn costs_one_row(&self) -> Option<String> {
        match &self.guest {
            Guest::Bare(_) => {
                self.mailboxes().iter().find_map(|mailbox| mailbox.failure()?.kind.costs_one_row())
            }
            Guest::Linux(machine) => machine.costs_one_row(),
        }
    }
    fn thread(&self, vcpu: u32) -> Option<Pid> {
        self.core.shared.gate.thread(vcpu)
    }
    fn leaves(&self) -> Option<Leaves> {
        self.core.stats.leaves()
    }
    fn fault_counts(&self) -> Option<FaultCounts> {
        match &self.guest {
            Guest::Bare(machine) => machine.fault_counts(),
            Guest::Linux(machine) => machine.fault_counts(),
        }
    }
    fn remote_tlb_flushes(&self) -> Option<u64> {
        self.core.stats.remote_tlb_flushes()
    }
    fn warm(&self) {
        if let Guest::Linux(machine) = &self.guest {
            machine.map_own_memory();
        }
    }
    fn system(&self) -> Option<&dyn GuestSystem> {
        match &self.guest {
            Guest::Bare(_) => None,
            Guest::Linux(machine) => Some(&**machine),
        }
    }
    fn first_entry_ns(&self) -> Option<u64> {
        let at = self.core.shared.first_entry_ns.load(Ordering::Relaxed);
        (at != 0).then_some(at)
    }
}
