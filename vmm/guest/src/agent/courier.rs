//! A vCPU's courier: takes its orders from the mailbox to the agent, and waits for each to be done.

use guest_abi::link::ToAgent;

use super::error::AgentError;
use super::shared::Shared;
use crate::{CrashKind, CrashReport, Mailbox};

/// The courier's thread.
pub(super) fn run(shared: &Shared, mailbox: &Mailbox) {
    while mailbox.next_order() {
        if let Err(error) = deliver(shared, mailbox) {
            let kind = match error {
                AgentError::Overdue(overdue) => CrashKind::Overdue(overdue),
                // The kind says the rest.
                AgentError::Ended(end) => CrashKind::Agent(end.to_string()),
                other => CrashKind::Agent(other.to_string()),
            };
            return mailbox.fail(CrashReport { vcpu: mailbox.vcpu(), kind, registers: None });
        }
    }
}

fn deliver(shared: &Shared, mailbox: &Mailbox) -> Result<(), AgentError> {
    let vcpu = mailbox.vcpu() as usize;
    // Before it is sent: the answer may arrive before the next statement.
    shared.lock().orders[vcpu].ask();
    shared.send(&ToAgent::Order { vcpu: vcpu as u16, order: mailbox.area().order() })?;
    // As long as the order takes. Its giver watches the count of touches, and ends the link.
    shared.wait("the guest's agent to carry out an order", None, |state| state.orders[vcpu].take())?;
    Ok(())
}
