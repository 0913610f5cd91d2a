//! userfaultfd, typed.
//!
//! Opening, features, messages decoded from bytes, the ioctls with all they can say. It takes and gives addresses, and
//! keeps no account of pages.
//!
//! ```text
//!   probe ─> Access                                what this host allows and has
//!   Userfault::open(Features) ─> Userfault ── register(Modes)
//!        │                           │
//!        │  messages                 └─ copy, zero, continue_, move_pages, write_protect, wake
//!        v                                │
//!   Waiter ─> Woken                       └─> ResolveError { done, kind }: how far it came, and what to do about it
//!   read_events ─> EventBuffer ─> Event
//! ```
//!
//! What the manual pages do not say is documented where it applies: which thread is woken in [`Waiter`], how far an ioctl
//! came in [`ResolveKind`]. Forks are not followed: `EVENT_FORK` is never asked for.

mod abi;
mod buffer;
mod event;
mod features;
mod handle;
mod open;
mod register;
mod resolve;
mod sys;
mod wait;

pub use buffer::{EventBuffer, ReadError};
pub use event::{DecodeError, Event, FaultKind, Message, PageFault};
pub use features::Features;
pub use handle::{MapAs, Userfault, Wake};
pub use open::{Access, Faults, OpenError, probe};
pub use register::{Modes, RegisterError};
pub use resolve::{Action, ResolveError, ResolveKind};
pub use wait::{Stop, Waiter, Woken};

#[cfg(test)]
harness::watch_libtest!();
