//! What a trial runs on: a guest under KVM, or workers on the software MMU. The engine sees no difference.

mod kvm;
mod soft;

use std::sync::Arc;
use std::time::Duration;

use guest_abi::block::Outcome;
use guest_mem::{Operation, Region, SlotTable};
use notifier_bridge::ShadowingMmu;

pub use kvm::KvmTestbed;
pub use soft::{SLOT_LIMIT, SoftError, SoftTestbed};

use crate::guest::{GuestError, Mailbox};
use crate::kvm::{Leaves, ZapMethod};

/// A machine with memory under test, workers that use it, and a secondary MMU between the two.
pub trait Testbed {
    /// The memory under test.
    fn arena(&self) -> &Region;
    /// Its memslots, and those of the memory below.
    fn slots(&self) -> &Arc<SlotTable>;
    /// How many workers there are.
    fn vcpus(&self) -> u32;
    /// A worker's mailbox.
    fn mailbox(&self, vcpu: u32) -> &Mailbox;
    /// Waits for the end of a worker's order, at most `patience` without a sign of life.
    ///
    /// # Errors
    /// As [`Mailbox::wait`].
    fn wait(&self, vcpu: u32, patience: Duration) -> Result<Outcome, GuestError>;
    /// The listener that keeps the secondary MMU in step under an announced policy, and its name. Without a
    /// method no range but the kernel's own is wanted: `None` from a secondary MMU that has a notifier of its
    /// own in the kernel, and from one that has not, the listener it cannot do without.
    fn listener(&self, method: Option<ZapMethod>) -> Option<(Arc<dyn ShadowingMmu>, &'static str)>;
    /// Performs `call`, which is `operation` on the arena, so that no worker is harmed by the moment in which its
    /// memory is read-only or elsewhere.
    fn around(&self, operation: Operation, call: &mut dyn FnMut());
    /// Leaf translations in the secondary MMU now, where it counts them.
    fn leaves(&self) -> Option<Leaves>;
    /// Faults that installed a translation so far, where they are counted.
    fn faults_fixed(&self) -> Option<u64>;
    /// Remote TLB flushes so far, where they are counted.
    fn remote_tlb_flushes(&self) -> Option<u64>;
    /// When the guest was first entered, `CLOCK_MONOTONIC` nanoseconds; `None` where there is none.
    fn first_entry_ns(&self) -> Option<u64>;
}
