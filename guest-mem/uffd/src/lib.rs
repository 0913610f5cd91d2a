//! userfaultfd, typed.
//!
//! Opening, features, messages decoded from bytes, the ioctls with all they can say. It takes and gives addresses, and
//! keeps no account of pages.
//!
//! ```text
//!   probe ─> Access                                what this host allows and has
//!   Userfault::open(Features) ─> Userfault ── register(Modes) ─> RegisteredIoctls
//!        │                           │
//!        │  messages                 └─ copy, zero, continue_, move_pages, poison, write_protect, wake
//!        v                                │
//!   Waiter ─> Woken                       └─> ResolveError { done, kind }: how far it came, and what to do about it
//!   read_events ─> EventBuffer ─> Event
//! ```
//!
//! What one should know, beyond the manual pages, stands where it matters: who is woken in [`Waiter`], how far an
//! ioctl came in [`ResolveKind`], who owns a fork's descriptor in [`Event`].

mod abi;
mod adopt;
mod buffer;
mod event;
mod features;
mod handle;
mod open;
mod register;
mod resolve;
mod sys;
mod wait;

pub use adopt::AdoptError;
pub use buffer::{EventBuffer, ReadError};
pub use event::{DecodeError, Event, Fault, FaultKind, Message};
pub use features::Features;
pub use handle::{MapAs, Userfault, Wake};
pub use open::{Access, Faults, OpenError, probe};
pub use register::{Modes, RegisterError, RegisteredIoctls};
pub use resolve::{Action, ResolveError, ResolveKind};
pub use wait::{Stop, Waiter, Woken};

#[cfg(test)]
harness::watch_libtest!();
