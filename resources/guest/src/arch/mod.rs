//! What depends on the processor: everything up to `guest_main` and after an exception, the doorbell, the page tables.
//!
//! An architecture is a folder here.

#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
