//! The VMM's side of the link to the agent, init of a Linux guest.
//!
//! ```text
//!   engine ── Mailbox ── courier thread ── Order ──┐
//!      │                     ▲ Done                 ├──> socket ══ virtio-console device ══ the guest's agent
//!      ├── map_arena ────────┼── MapArena ──────────┤
//!      ├── shell, counters ──┼── Shell, Counters ───┘
//!      │                     │
//!      └── wait ◄── state ◄──┴── reader thread ◄─────── socket
//! ```
//!
//! An order travels over the link, its outcome does not: the agent leaves that in the vCPU's control area, which both
//! sides share, as the bare guest does. The reader thread checks every message against what was asked. A guest that
//! answers without a request, or sends what is no message, breaks the link for good: every wait ends with the reason,
//! and every vCPU's mailbox fails with it.

mod courier;
mod error;
mod link;
mod mapped;
mod shared;
mod state;
#[cfg(test)]
mod tests;

pub use error::{AgentError, End, ProtocolError};
pub use link::Link;
pub use mapped::{ArenaMap, Misplaced};
pub use state::{Counters, Hello};
