//! What a Linux guest finds in memory before its first instruction.
//!
//! ```text
//!  kernel file ── image: which kind it is, or why it is none
//!     └─ bzImage ── payload: unpacked on the host ──> an ELF kernel
//!                                                        │
//!  Platform (layout) ── acpi: tables ──> RSDP            │
//!     └───────────────────────┐          │               │
//!                             v          v               v
//!  initrd, command line ──> load: everything into guest memory ──> Start
//!                                                                    └─ registers: the boot vCPU
//! ```
//!
//! Where everything lies, which files are kernels, and how a vCPU enters one depends on the processor: `arch`.

mod arch;
pub mod compression;
pub mod cpio;
pub mod initramfs;
pub mod initrd;
pub mod modules;
mod platform;

pub use arch::*;
pub use initrd::Initrd;
pub use platform::{MemoryNode, Platform, VirtioSlot};

#[cfg(test)]
harness::watch_libtest!();
