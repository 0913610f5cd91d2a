//! The host: what it is, what is changed on it and undone, who else uses it.

pub mod bus_error;
pub mod change_error;
pub mod change_log;
pub mod changes;
pub mod facts;
pub mod guardian;
pub mod guardian_main;
pub mod kvm_module;
pub mod kvm_stats;
pub mod leftovers;
pub mod neighbours;
pub mod processors;
pub mod resident;
pub mod rights;
pub mod root;
pub mod signals;
pub mod strangers;
pub mod swaps;
pub mod undo;
mod zram;

pub use change_error::ChangeError;
pub use changes::{AddedZram, ChangeId, HostChanges, Switched};
pub use facts::HostFacts;
pub use leftovers::{Leftover, undo_leftovers};
pub use neighbours::Neighbours;
pub use rights::{Capability, Rights};
pub use root::Root;
pub use signals::{Cancel, Cancelled};
pub use undo::{UndoAction, UndoError, Undone};
