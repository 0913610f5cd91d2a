//! The workers that carry out orders: vCPUs of the bare guest, or workers on the software MMU.
//!
//! ```text
//!   engine ── Mailbox::submit(order) ──> worker thread ── runs the guest ── Mailbox::next_order / fail
//!     └───── Mailbox::wait ◄─────────────────────────────────────────────────────┘
//! ```
//!
//! The engine and a worker share one [`Mailbox`] and one control area each; the engine never waits without a
//! deadline, because a guest may do anything, including nothing.

pub mod agent;
mod arch;
mod area;
pub mod clock;
mod crash;
mod mailbox;
mod ram;

pub use arch::{Registers, elf, ports};
pub use area::Area;
pub use crash::{CrashKind, CrashReport};
pub use mailbox::{GuestError, Mailbox, Phase};
pub use ram::{GuestRam, RamPart};

#[cfg(test)]
harness::watch_libtest!();
