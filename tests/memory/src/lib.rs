//! Guest memory for the tests of `guest-mem`, `uffd` and `swap` on a real kernel: what they need of the host, memory in a
//! known state, and stores that fail.
//!
//! ```text
//!   tests! ─> Need ──> harness            what a test needs, asked of the host once
//!   alone, allow, swap, OwnCgroup, filled  the host for one test at a time, and memory on it
//!   Announcements                         what the kernel announces to a VM of this process
//!   FaultyStore                           a store around a store, of which calls fail as a plan says
//! ```
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

pub mod announced;
mod cgroup;
mod host;
mod memory;
mod needs;
pub mod stores;
mod zram;

pub use cgroup::OwnCgroup;
pub use host::{Alone, SysfsSwitch, alone, switches, without_khugepaged};
pub use memory::{
    assert_folios, assert_intact, backings, counts, fill, filled, page_out, pages, swappable, vmas,
};
pub use needs::{Need, allow};
pub use zram::{ZramSwap, swap};

/// Declares the tests of a module, with what each needs.
#[macro_export]
macro_rules! tests {
    ($($tests:tt)*) => { harness::tests! { $crate::Need; $($tests)* } };
}

#[cfg(test)]
harness::watch_libtest!();
