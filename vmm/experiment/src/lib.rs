//! Experiments as data: scenario, events, folds, record.
//!
//! ```text
//!   scenario (TOML) ──> rows to make ──> [lab] ──> events ──> fold ──> record (run.json)
//!                                                    └──> events.log, from which every row can be folded again
//! ```

#![forbid(unsafe_code)]

pub mod choice;
pub mod events;
pub mod fold;
pub mod record;
pub mod scenario;

#[cfg(test)]
harness::watch_libtest!();
