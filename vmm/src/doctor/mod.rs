//! `zapscope doctor`: what this host can and cannot measure, why, and the command that would change it.
//!
//! Each subject is a file with a `probe`, which asks the host and keeps the answers as plain data, and a
//! `judge`, a pure function of those answers. The doctor changes nothing on the host, except that it undoes what a killed
//! run has left on it. What cannot be asked (no root, no `/dev/kvm`) becomes a finding like any other.

mod capabilities;
mod cgroup;
mod exit_cost;
mod finding;
mod huge_pages;
mod kvm_device;
mod madvise;
mod others;
#[cfg(test)]
mod remedies;
mod report;
mod strangers;
mod swap;
mod tracing;
mod uffd;
mod undoing;

pub use report::Report;
