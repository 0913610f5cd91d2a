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
//! | module | what it knows |
//! | --- | --- |
//! | [`layout`] | where everything lies, devices and memory alike |
//! | [`image`], [`bzimage`], [`vmlinux`] | kernel files |
//! | [`payload`], [`compression`] | what is compressed in a bzImage |
//! | [`mod@load`], [`memory_map`], [`zero_page`], [`start_info`], [`initrd`], [`long_mode`], [`reset_vector`] | guest memory |
//! | [`registers`] | the first registers |
//! | [`acpi`] | ACPI tables |
//! | [`cpio`], [`modules`] | what an initramfs is made of |

pub mod acpi;
pub mod bzimage;
pub mod compression;
pub mod cpio;
#[cfg(any(test, feature = "fixture"))]
pub mod fixture;
pub mod image;
pub mod initrd;
pub mod layout;
pub mod load;
pub mod long_mode;
pub mod memory_map;
pub mod modules;
pub mod payload;
pub mod registers;
pub mod reset_vector;
pub mod start_info;
pub mod vmlinux;
pub mod zero_page;

pub use image::{Kernel, Refusal};
pub use initrd::Initrd;
pub use layout::{MemoryNode, Platform, VirtioSlot};
pub use load::{Boot, BootFile, LoadError, Start, load};

#[cfg(test)]
harness::watch_libtest!();
