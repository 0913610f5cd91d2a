//! The link: what the VMM and the agent, init of a Linux guest, say to each other over a byte stream.
//!
//! ```text
//!   VMM                                                    agent
//!      <──────────────────────────────────────────  Hello { abi, vcpus, release }
//!   MapArena { bytes, pages } ──────────────────>    allocates the arena and the control areas
//!      <──────────────────────────────────────────  Mapped { arena_gpa, huge_bytes, area_gpas }
//!   Order { vcpu, order } ──────────────────────>    vCPU's worker carries it out
//!      <──────────────────────────────────────────  Done { vcpu }          the outcome is in the control area
//!   Shell { command } ──────────────────────────>
//!      <───────────────────  ShellOutput { bytes } … ShellExited { status }
//!   Counters ───────────────────────────────────>
//!      <──────────────────────────────────────────  CountersAre { moved_pages, huge_bytes, text }
//!
//!   in place of any answer:  Refused { request, what }     the agent lives on
//!   at any time:             Log { text }, and Failed { what }: the agent's last words
//! ```
//!
//! A frame is a header of 14 bytes and a payload, all of it little-endian:
//!
//! | offset | 0 | 4 | 6 | 8 | 10 | 14 |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | content | magic, u32 | version, u16 | kind, u16 | vCPU, u16 | payload's length, u32 | payload |
//!
//! One answer is outstanding for each kind of request, one order for each vCPU. Nothing here allocates, and
//! nothing that arrives is believed: a frame that is not what it must be is a [`LinkError`], after which the
//! stream cannot be read any further.

mod frame;
mod message;
#[cfg(test)]
mod tests;

pub use frame::{Decoder, Frame, FrameBuffer, HEADER_BYTES, LinkError, MAGIC, MAX_PAYLOAD, VERSION};
pub use message::{AreaGpas, FromAgent, Mapped, Pages, Request, ToAgent, cut};

/// Version of everything in this crate that both sides must agree on: orders, control areas, patterns.
pub const ABI_VERSION: u32 = 1;

/// The name of the virtio-console port that the link runs over.
pub const PORT_NAME: &str = "org.zapscope.agent";
