//! The parts that depend on the processor: the state of a vCPU, its exits, and how a guest begins.
//!
//! An architecture is a folder here. The rest of the crate names what it needs from this module and nothing from a folder.

#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
