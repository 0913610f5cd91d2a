//! What depends on the processor: the doorbell's place, the time stamp counter, and what an exception leaves.
//!
//! An architecture is a file here. The rest names what it needs from this module.

#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
