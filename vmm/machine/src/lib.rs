//! KVM: the VM, its vCPUs, and the listener that zaps its memslots.
//!
//! ```text
//!   Machine ─┬─ VmCore ── Vm (memslots, and the memory behind them), statistics
//!            │     ▲
//!            │     └── KvmSlots: invalidate_range_start ── zap ──┬─ Memslot: Gate::hold, delete, restore
//!            │                                                   ├─ Protect: ProtectionWindow, mprotect twice
//!            │                                                   └─ Unmap
//!            └─ BareVcpu ── Mailbox, and Vcpu ── thread: Gate ── KVM_RUN ── arch::Exit
//! ```

mod arch;
mod bare;
mod boot_error;
mod device;
pub mod gate;
mod machine;
mod memslots;
mod no_kvm;
pub mod pc;
mod slots;
pub mod snapshot;
mod stats;
mod stepped;
pub mod sys;
#[cfg(test)]
mod testing;
mod vcpu;
mod vm;
mod vm_error;
mod vm_shared;
pub mod window;

pub use arch::{LinuxLimit, OtherCpu, SLOT_ZAP_QUIRK, can_be_limited, quirks, state, state_bytes};
pub use bare::BareVcpu;
pub use boot_error::BootError;
pub use device::Kvm;
pub use machine::Machine;
pub use memslots::GuestCpu;
pub use no_kvm::NoKvm;
pub use slots::{Accounting, KvmSlots, ZapMethod};
pub use stats::{FaultCounts, Leaves, VcpuStats, VmStats};
pub use stepped::Stepped;
pub use vcpu::Vcpu;
pub use vm::{VmConfig, VmCore};
pub use vm_error::VmError;
pub use vm_shared::VmShared;

#[cfg(test)]
harness::watch_libtest!();
