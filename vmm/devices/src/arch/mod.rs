//! Devices that only one architecture has.
//!
//! An architecture is a folder here. The rest of the crate names nothing from a folder.

#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
