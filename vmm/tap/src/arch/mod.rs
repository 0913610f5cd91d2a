//! What depends on the processor. An architecture is a file here, and nothing else names what is in it.

#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::*;
