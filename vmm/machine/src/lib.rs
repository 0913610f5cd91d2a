//! KVM: the VM, its vCPUs, and the listener that zaps its memslots.
//!
//! ```text
//!   Machine ─┬─ VmCore ── Vm (memslots, and the memory behind them), statistics
//!            │     ▲
//!            │     └── KvmSlots: invalidate_range_start ── zap ──┬─ Memslot: Gate::hold, delete, restore
//!            │                                                   ├─ Protect: ProtectionWindow, mprotect twice
//!            │                                                   └─ Unmap
//!            └─ Vcpu ── Mailbox ── thread: Gate ── KVM_RUN ── exit::decide
//! ```

pub mod boot;
mod device;
mod exit;
pub mod gate;
mod machine;
mod memslots;
mod no_kvm;
pub mod pc;
mod slots;
pub mod snapshot;
pub mod state;
mod stats;
mod stepped;
mod surroundings;
pub mod sys;
#[cfg(test)]
mod testing;
mod vcpu;
mod vm;
mod vm_error;
pub mod window;

pub use device::Kvm;
pub use machine::Machine;
pub use memslots::GuestCpu;
pub use no_kvm::NoKvm;
pub use slots::{Accounting, KvmSlots, ZapMethod};
pub use stats::{FaultCounts, Leaves, VcpuStats, VmStats};
pub use stepped::Stepped;
pub use surroundings::Surroundings;
pub use vcpu::Vcpu;
pub use vm::{VmConfig, VmCore};
pub use vm_error::VmError;

#[cfg(test)]
harness::watch_libtest!();
