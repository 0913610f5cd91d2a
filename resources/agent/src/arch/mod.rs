//! What depends on the processor: the counter by which touches are timed.
//!
//! An architecture is a file here.

#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
