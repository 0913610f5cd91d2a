//! The host: its facts, the changes that a run makes to it and their undoing, and other zapscope runs.
//!
//! ```text
//!   HostChanges ── plan ──> guardian, change log ── the change ── … ── undo        on every way out
//!        └ neither is alive any more: the next zapscope reads the log (leftovers)
//! ```

mod arch;
pub mod bus_error;
pub mod change_error;
pub mod change_log;
mod change_made;
pub mod changes;
pub mod facts;
pub mod guardian;
pub mod guardian_main;
mod guardian_message;
pub mod kvm_stats;
pub mod leftovers;
pub mod neighbours;
mod pid_namespace;
mod process_memory;
pub mod processors;
mod reclaimers;
pub mod resident;
mod retry;
pub mod rights;
pub mod root;
pub mod signals;
pub mod strangers;
pub mod swaps;
mod switch_file;
pub mod tracefs;
pub mod undo;
mod zram;

pub use arch::{CpuFlags, kvm_module};
pub use change_error::ChangeError;
pub use change_made::HostChange;
pub use changes::{AddedZram, ChangeId, HostChanges, Switched};
pub use facts::HostFacts;
pub use leftovers::{Leftover, undo_leftovers};
pub use neighbours::Neighbours;
pub use pid_namespace::in_initial_pid_namespace;
pub use process_memory::page_out_process;
pub use rights::{Capability, Rights};
pub use root::Root;
pub use signals::{Cancel, Cancelled};
pub use tracefs::{Tracefs, TracefsError};
pub use undo::{UndoAction, UndoError, Undone};

#[cfg(test)]
harness::watch_libtest!();
