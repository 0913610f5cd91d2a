//! What is read out of experiments: tables, timelines, predictions.
//!
//! ```text
//!   run.json   ──> report ──> table, paragraph, KTAP
//!   events.log ──> timeline ──> report, trace
//!              └─> replay ──> rows under another policy ──> report
//! ```
//!
//! | module | |
//! | --- | --- |
//! | [`report`] | rows as a table, as a paragraph, as KTAP; a timeline and a comparison as tables |
//! | [`timeline`] | the time of a row by cause, and a trace for viewers |
//! | [`replay`] | the recorded victims of a row under another policy, against a model of the secondary MMU |

#![forbid(unsafe_code)]

pub mod replay;
pub mod report;
pub mod timeline;

#[cfg(test)]
harness::watch_libtest!();
