//! A vCPU's courier: takes its orders from the mailbox to the agent, and waits for each to be done.

use guest_abi::link::ToAgent;

use super::error::AgentError;
use super::link::Shared;
use crate::guest::{CrashKind, CrashReport, Mailbox};

/// The courier's thread.
pub(super) fn run(shared: &Shared, mailbox: &Mailbox) {
    while mailbox.next_order() {
        if let Err(error) = deliver(shared, mailbox) {
            let what = match error {
                // The kind says the rest.
                AgentError::Ended(end) => end.to_string(),
                other => other.to_string(),
            };
            return mailbox.fail(CrashReport {
                vcpu: mailbox.vcpu(),
                kind: CrashKind::Agent(what),
                registers: None,
            });
        }
    }
}

fn deliver(shared: &Shared, mailbox: &Mailbox) -> Result<(), AgentError> {
    let vcpu = mailbox.vcpu() as usize;
    // Before it is sent: the answer may overtake whatever comes after.
    shared.lock().orders[vcpu].ask();
    shared.send(&ToAgent::Order { vcpu: vcpu as u16, order: mailbox.area().order() })?;
    shared.wait(None, |state| state.orders[vcpu].take())?;
    Ok(())
}
