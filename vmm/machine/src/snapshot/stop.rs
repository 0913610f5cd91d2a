//! Stopping a guest for good while one of its threads may be waiting for a page that never comes.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{Machine, VmShared};
use guest::{CrashKind, CrashReport, Mailbox};

/// Stops a guest, from any thread, without waiting: a vCPU that is inside KVM, in the middle of reading the guest's
/// code or page tables, comes back from there with its page or not at all. The machine's user gets the reason in place
/// of its order's outcome, and ends the process without waiting for that vCPU's thread.
#[derive(Debug, Default)]
pub struct Stopper(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    why: Option<CrashKind>,
    guest: Option<(Arc<VmShared>, Vec<Arc<Mailbox>>)>,
}

impl Stopper {
    /// Names the guest. If it was to be stopped before, it is now.
    pub fn watch(&self, machine: &Machine) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mailboxes = machine.vcpus().iter().map(|vcpu| vcpu.mailbox().clone()).collect();
        state.guest = Some((machine.core().shared.clone(), mailboxes));
        state.stop();
    }

    /// Stops the guest. The first reason is the one that is told.
    pub fn stop(&self, why: CrashKind) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.why.get_or_insert(why);
        state.stop();
    }
}

impl State {
    fn stop(&self) {
        let (Some(kind), Some((shared, mailboxes))) = (&self.why, &self.guest) else { return };
        shared.gate.shut_for_good(kind.clone());
        for mailbox in mailboxes {
            let vcpu = mailbox.vcpu();
            mailbox.fail(CrashReport { vcpu, kind: kind.clone(), registers: None });
            shared.gate.kick(vcpu);
        }
    }
}
