//! The host: what it is, what is changed on it and undone, who else uses it.

pub mod bus_error;
pub mod changes;
pub mod facts;
pub mod guardian;
pub mod guardian_main;
pub mod kvm_module;
pub mod kvm_stats;
pub mod neighbours;
pub mod processors;
pub mod resident;
pub mod root;
pub mod signals;
pub mod strangers;
pub mod swaps;
pub mod undo;
mod zram;

pub use changes::{AddedZram, ChangeError, ChangeId, HostChanges};
pub use facts::HostFacts;
pub use neighbours::Neighbours;
pub use root::Root;
pub use signals::{Cancel, Cancelled};
pub use undo::{UndoAction, UndoError};
