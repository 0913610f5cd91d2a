//! Experiments as data: scenario, events, folds, record.

#![forbid(unsafe_code)]

pub mod choice;
pub mod events;
pub mod fold;
pub mod record;
pub mod scenario;

#[cfg(test)]
harness::watch_libtest!();
