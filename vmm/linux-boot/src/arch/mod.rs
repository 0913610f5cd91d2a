//! What depends on the processor: kernel files, the memory map, boot structures, firmware tables, first registers.
//!
//! An architecture is a folder here. The rest of the crate names what it needs from this module and nothing from a folder.

#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
