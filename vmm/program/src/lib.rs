//! How any command of the program ends, prints, reads the files it is given and writes its own.
//!
//! | module | what it has |
//! | --- | --- |
//! | [`exit`] | exit codes, and the class of an error from which the code follows |
//! | [`output`] | standard output and standard error, written without blocking or panicking |
//! | [`input`] | files that a user names, read up to a limit |
//! | [`whole_file`] | files that are complete or absent |
//! | [`stop_signals`] | the signals that end a command |
//! | [`units`] | numbers as text |
//! | [`distribution`] | times, summed up in eight numbers |

pub mod distribution;
pub mod exit;
pub mod input;
pub mod output;
pub mod stop_signals;
pub mod units;
pub mod whole_file;

#[cfg(test)]
harness::watch_libtest!();
