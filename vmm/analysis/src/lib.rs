//! What is read out of experiments: tables, timelines, predictions.
//!
//! ```text
//!   run.json   ──> report ──> table, paragraph, KTAP
//!   events.log ──> timeline ──> report, trace
//!              └─> replay ──> rows under another policy ──> report
//! ```

#![forbid(unsafe_code)]

pub mod replay;
pub mod report;
pub mod timeline;

#[cfg(test)]
harness::watch_libtest!();
