//! What every part shares: exit classes, output that cannot panic or block, stop signals, bounded input, units.

pub mod clock;
pub mod distribution;
pub mod exit;
pub mod input;
pub mod output;
pub mod stop_signals;
pub mod units;
pub mod whole_file;

#[cfg(test)]
harness::watch_libtest!();
