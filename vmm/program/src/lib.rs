//! How any command of the program ends, prints, reads the files it is given and writes its own.

pub mod distribution;
pub mod exit;
pub mod input;
pub mod output;
pub mod stop_signals;
pub mod units;
pub mod whole_file;

#[cfg(test)]
harness::watch_libtest!();
