//! The stand-in `mmu_notifier` chain of zapscope. Knows nothing of KVM.
//!
//! An operation that takes a guest's memory away is handed to the [`Bridge`], which announces it as widely as
//! a [`Policy`] says, performs it, and writes down what it cost:
//!
//! ```text
//!   Invalidation ──> Policy ──> Calls ──> Bridge ──> Chain ──> ShadowingMmu: SoftMmu, a VMM's memslots
//!   event.rs         policy.rs  calls.rs  bridge.rs  chain.rs └> SharingMmu: SharedTlb
//!                                            │                      │
//!                                            v                      └─ Sequence: a fault that raced retries
//!                                     InvalidationRecord               sequence.rs, soft_mmu/
//! ```
//!
//! To read how an invalidation travels, take the files in that order.

mod bridge;
mod by;
pub mod calls;
mod chain;
mod clock;
mod count;
mod event;
pub mod hook;
mod host_mmu;
pub mod listener;
mod names;
pub mod policy;
mod primary;
mod ranges;
mod record;
pub mod sequence;
pub mod shared_tlb;
pub mod soft_mmu;
mod sync;

#[cfg(test)]
mod doubles;

pub use bridge::Bridge;
pub use by::By;
pub use calls::{Call, Calls};
pub use clock::monotonic_ns;
pub use count::Count;
pub use event::{Cause, Invalidation};
pub use host_mmu::HostMmu;
pub use listener::{Listener, ListenerKind, Shadowing, ShadowingMmu, Sharing, SharingMmu, Zapped};
pub use names::UnknownName;
pub use policy::Policy;
pub use primary::{Frame, Mapping, NotGiven, PrimaryMmu, ResolveError};
pub use ranges::{GivenBack, Ranges};
pub use record::InvalidationRecord;
pub use sequence::Sequence;
pub use shared_tlb::{SharedTlb, SharedTlbStats};
pub use soft_mmu::{AccessError, SoftMmu, SoftMmuStats, Worker, WorkerStats};

#[cfg(test)]
harness::watch_libtest!();
