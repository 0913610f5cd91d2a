//! What depends on the processor. An architecture is a folder here, and nothing else names what is in it.

#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
