//! zapscope's library: the machine, the runs, the reports, the command line.

pub mod cli;
pub mod clock;
pub mod doctor;
pub mod guest;
pub mod host;
pub mod kvm;
pub mod record;
pub mod report;
pub mod run;
pub mod scenario;
pub mod testbed;
