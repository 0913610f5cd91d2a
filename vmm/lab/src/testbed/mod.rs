//! The machine of a trial: a guest under KVM, or workers on the software MMU. The trial sees no difference.

mod kvm;
mod linux_files;
mod linux_machine;
mod soft;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use guest_abi::block::Outcome;
use guest_mem::{Memory, Region, SlotTable};
use notifier_bridge::ShadowingMmu;
use rustix::thread::Pid;
use uffd::Faults;

pub use linux_files::{LinuxError, LinuxSetup};
pub use linux_machine::LinuxMachine;

pub(crate) use kvm::KvmTestbed;
pub(crate) use soft::{SoftError, SoftTestbed};

use experiment::choice::{Reclaim, Zap};
use experiment::events::GivenBack;
use guest::{CrashReport, GuestError, Mailbox};
use machine::{FaultCounts, Leaves, VmShared};

/// An operating system in a guest, as far as a scenario uses it.
pub trait GuestSystem {
    /// Runs a shell command to its end, and returns how it ended and the last lines of what it printed.
    ///
    /// # Errors
    /// There is no shell, the guest failed, or the user wants to stop.
    fn shell(&self, command: &str) -> Result<ShellEnd, GuestError>;
    /// Sets the balloon's size and waits until it has it.
    ///
    /// # Errors
    /// The guest has no balloon, makes no progress with it, or failed.
    fn set_balloon(&self, bytes: u64) -> Result<(), GuestError>;
    /// The guest's own counters, by name.
    ///
    /// # Errors
    /// The guest failed, or its kernel has moved pages of the memory under test.
    fn counters(&self) -> Result<BTreeMap<String, u64>, GuestError>;
    /// The memory that the balloon and free page reports gave back to the host since the last call.
    fn take_given_back(&self) -> GivenBack;
}

/// Stops a guest for good: none of its workers comes back to it.
#[derive(Clone)]
pub struct Breaker {
    /// Keeps vCPUs out. Workers of the software MMU have none, and wait for a page that never comes.
    shared: Option<Arc<VmShared>>,
    mailboxes: Vec<Arc<Mailbox>>,
}

impl Breaker {
    /// Stops it, with a report for each worker.
    pub fn stop(&self, report: impl Fn(u32) -> CrashReport) {
        if let Some(shared) = &self.shared {
            // Held or not, no vCPU comes in again.
            let _hold = shared.gate.hold();
            shared.gate.shut_for_good(report(0).kind);
        }
        self.mailboxes.iter().for_each(|mailbox| mailbox.fail(report(mailbox.vcpu())));
    }
}

/// The end of a shell command in a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShellEnd {
    /// Its exit code, or 128 and the signal.
    pub status: i32,
    /// The end of what it printed.
    pub tail: String,
}

/// A machine with memory under test, workers that use it, and a secondary MMU between the two.
pub trait Testbed {
    /// The memory under test.
    fn arena(&self) -> &Region;
    /// Its memslots, and those of the memory below.
    fn slots(&self) -> &Arc<SlotTable>;
    /// The number of workers.
    fn vcpus(&self) -> u32;
    /// A worker's mailbox.
    fn mailbox(&self, vcpu: u32) -> &Mailbox;
    /// Waits for the end of a worker's order, at most `patience` without a sign of life.
    fn wait(&self, vcpu: u32, patience: Duration) -> Result<Outcome, GuestError>;
    /// The listener that zaps so, and keeps the secondary MMU in step. For [`Zap::Nothing`] it is `None` where the kernel has
    /// a notifier of its own for this MMU; the software MMU has none, and always needs its listener.
    fn shadowing(&self, zap: Zap) -> Option<Arc<dyn ShadowingMmu>>;
    /// Performs `call`, which takes memory of the arena so, in a way that no worker is harmed by the moment in which its
    /// memory is read-only, elsewhere, or not to be had.
    fn around(&self, reclaim: Reclaim, call: &mut dyn FnMut());
    /// The memory under test, for a swap in user space.
    fn memory(&self) -> Memory;
    /// The faults that such a swap must serve.
    fn faults(&self) -> Faults {
        Faults::All
    }
    /// The means to stop the guest for good, from any thread.
    fn breaker(&self) -> Breaker;
    /// The crash that ended the guest, if the next guest need not meet it: a limit of the host, a lost page.
    fn costs_one_row(&self) -> Option<String> {
        (0..self.vcpus()).find_map(|vcpu| self.mailbox(vcpu).failure()?.kind.costs_one_row())
    }
    /// The thread that runs a vCPU, or is a worker; `None` before it has begun.
    fn thread(&self, vcpu: u32) -> Option<Pid>;
    /// Leaf translations in the secondary MMU now, where it counts them.
    fn leaves(&self) -> Option<Leaves>;
    /// Faults so far, where they are counted.
    fn fault_counts(&self) -> Option<FaultCounts>;
    /// Those that installed a translation.
    fn faults_fixed(&self) -> Option<u64> {
        self.fault_counts().map(|faults| faults.fixed)
    }
    /// Remote TLB flushes so far, where they are counted.
    fn remote_tlb_flushes(&self) -> Option<u64>;
    /// Maps in the secondary MMU, as far as this host can, what the guest needs besides the memory under test: its
    /// first use does not count as a fault of the experiment then.
    fn warm(&self) {}
    /// The operating system in the guest, if it has one.
    fn system(&self) -> Option<&dyn GuestSystem> {
        None
    }
    /// When the guest was first entered, `CLOCK_MONOTONIC` nanoseconds; `None` where there is none.
    fn first_entry_ns(&self) -> Option<u64>;
}
