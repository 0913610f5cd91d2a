//! What can go wrong between the VMM and the agent.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use guest_abi::link::{ABI_VERSION, LinkError, Request};

use guest_mem::waits::Overdue;

use super::mapped::Misplaced;
use program::exit::{Class, Classified};

/// A message that is well formed, and that the agent had no business to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum ProtocolError {
    #[error("it sent another message before it said Hello")]
    NoHello,
    #[error("it said Hello twice")]
    SecondHello,
    #[error("it speaks version {0} of the guest ABI, and this VMM version {ABI_VERSION}")]
    Abi(u32),
    #[error("it claims to have {0} vCPUs")]
    Vcpus(u16),
    #[error("it answered {0:?}, which was not asked for")]
    Unasked(Request),
    #[error("it reported an order of vCPU {0} done, which had none")]
    Idle(u16),
}

/// Why nothing more will come from the agent.
#[derive(Clone, Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum End {
    #[error("{0}")]
    Failed(String),
    #[error("the agent broke the protocol: {0}")]
    Protocol(LinkError),
    #[error("the agent broke the protocol: {0}")]
    Violated(ProtocolError),
    #[error("the guest closed the port to its agent")]
    Closed,
    #[error("the socket to the virtio-console device failed: {0}")]
    Socket(Arc<io::Error>),
    #[error("{0}")]
    Ended(String),
}

impl End {
    /// What an error of the socket says: one that was closed may show in several ways.
    pub(super) fn of(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Socket(Arc::new(error)),
        }
    }
}

/// Why a request came to nothing.
#[derive(Clone, Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum AgentError {
    #[error("the guest's agent failed: {0}")]
    Ended(End),
    #[error("the guest's agent refused {request:?}: {what}")]
    Refused { request: Request, what: String },
    #[error("the guest's agent did not {what} within {} s", waited.as_secs())]
    Silent { what: &'static str, waited: Duration },
    #[error(transparent)]
    Overdue(#[from] Overdue),
    #[error("{0:?} was asked of the guest's agent while it was busy with the last one")]
    Busy(Request),
    #[error("the request cannot be sent to the guest's agent: {0}")]
    Request(LinkError),
    #[error("the guest's agent lied about its memory")]
    Misplaced(#[from] Misplaced),
}

impl Classified for AgentError {
    fn class(&self) -> Class {
        match self {
            Self::Ended(_) | Self::Refused { .. } | Self::Silent { .. } | Self::Misplaced(_) => Class::Wrong,
            Self::Busy(_) | Self::Request(_) | Self::Overdue(_) => Class::Fault,
        }
    }
}

impl From<End> for AgentError {
    fn from(end: End) -> Self {
        Self::Ended(end)
    }
}
