//! zapscope's library: the machine, the runs, the reports, the command line.

pub mod agent;
pub mod attach;
pub mod choice;
pub mod cli;
pub mod clock;
pub mod devices;
pub mod doctor;
pub mod events;
pub mod exit;
pub mod fold;
pub mod guest;
pub mod hook;
pub mod host;
pub mod input;
pub mod kvm;
pub mod linux;
pub mod output;
pub mod record;
pub mod replay;
pub mod report;
pub mod run;
pub mod scenario;
pub mod snapshot;
pub mod stop_signals;
pub mod tap;
pub mod testbed;
pub mod timeline;
pub mod units;
pub mod whole_file;

#[cfg(test)]
harness::watch_libtest!();
