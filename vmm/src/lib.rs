//! zapscope: the program. Its commands; what it finds out of a host; the memory of another process's VM.

#![forbid(unsafe_code)]

pub mod attach;
pub mod cli;
mod doctor;

#[cfg(test)]
harness::watch_libtest!();
