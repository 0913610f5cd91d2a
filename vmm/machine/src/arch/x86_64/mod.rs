//! x86-64.

pub mod boot;
mod cpuid;
pub(crate) mod exit;
mod linux_limit;
mod other_cpu;
mod quirks;
mod registers;
mod repair;
pub(crate) mod setup;
pub mod state;
pub mod state_bytes;
#[cfg(test)]
mod testing;
mod vm;

pub(crate) use exit::{Exit, Space, doorbell, internal_error, run};
pub use linux_limit::LinuxLimit;
pub use other_cpu::OtherCpu;
pub(crate) use other_cpu::check_cpu;
pub use quirks::{SLOT_ZAP_QUIRK, can_be_limited, quirks};
pub(crate) use registers::registers;
pub(crate) use repair::repair;
#[cfg(test)]
pub(crate) use testing::{about_to_run, in_ring_3};
pub(crate) use vm::create;
