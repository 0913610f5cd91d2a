//! Experiments as data: scenario, events, folds, record.
//!
//! ```text
//!   scenario (TOML) ──> rows to make ──> [lab] ──> events ──> fold ──> record (run.json)
//!                                                    └──> events.log, from which every row can be folded again
//! ```
//!
//! | module | |
//! | --- | --- |
//! | [`choice`] | the axes of a row: backing, policy, reclaim, granule, zap; its listener; its label |
//! | [`scenario`] | the scenario language, checked; the pages of each step; expectations |
//! | [`events`] | the events of a trial, and the log that keeps them |
//! | [`fold`] | the sums of a trial's events, the kernel's account among them |
//! | [`record`] | the row of such sums, and the run record |

#![forbid(unsafe_code)]

pub mod choice;
pub mod events;
pub mod fold;
pub mod record;
pub mod scenario;

#[cfg(test)]
harness::watch_libtest!();
