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
pub enum Lie {
    /// Something else came before Hello.
    #[error("it sent another message before it said Hello")]
    NoHello,
    /// Hello came again.
    #[error("it said Hello twice")]
    SecondHello,
    /// It was built from another version.
    #[error("it speaks version {0} of the guest ABI, and this VMM version {ABI_VERSION}")]
    Abi(u32),
    /// No vCPUs, or more than there can be.
    #[error("it claims to have {0} vCPUs")]
    Vcpus(u16),
    /// An answer to nothing.
    #[error("it answered {0:?}, which nobody had asked")]
    Unasked(Request),
    /// An order done that nobody gave.
    #[error("it reported an order of vCPU {0} done, which had none")]
    Idle(u16),
}

/// Why nothing more will come from the agent.
#[derive(Clone, Debug, thiserror::Error)]
pub enum End {
    /// It said so.
    #[error("{0}")]
    Failed(String),
    /// What it sent is no message.
    #[error("the agent broke the protocol: {0}")]
    Protocol(LinkError),
    /// What it sent makes no sense.
    #[error("the agent broke the protocol: {0}")]
    Lied(Lie),
    /// The guest closed its side, or the device did.
    #[error("the guest closed the port to its agent")]
    Closed,
    /// The socket failed.
    #[error("the socket to the virtio-console device failed: {0}")]
    Socket(Arc<io::Error>),
    /// The VMM ended the link.
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
pub enum AgentError {
    /// The link is no more.
    #[error("the guest's agent failed: {0}")]
    Ended(End),
    /// The agent cannot do this, and lives on.
    #[error("the guest's agent refused {request:?}: {what}")]
    Refused {
        /// What it was asked.
        request: Request,
        /// Its reason.
        what: String,
    },
    /// No answer in time.
    #[error("the guest's agent did not {what} within {} s", waited.as_secs())]
    Silent {
        /// What it was to do.
        what: &'static str,
        /// How long it had.
        waited: Duration,
    },
    /// A thread of this program, or a wake from one, did not come.
    #[error(transparent)]
    Overdue(#[from] Overdue),
    /// The same was asked before and is not answered yet.
    #[error("{0:?} was asked of the guest's agent while it was busy with the last one")]
    Busy(Request),
    /// What is asked does not fit into a message.
    #[error("the request cannot be sent to the guest's agent: {0}")]
    Request(LinkError),
    /// The agent put something where it cannot be.
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
