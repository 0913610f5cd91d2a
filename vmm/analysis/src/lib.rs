//! What is read out of experiments: tables, timelines, predictions.

#![forbid(unsafe_code)]

pub mod replay;
pub mod report;
pub mod timeline;

#[cfg(test)]
harness::watch_libtest!();
