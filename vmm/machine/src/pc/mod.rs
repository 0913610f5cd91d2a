//! A PC for a stock Linux kernel: memory on nodes, interrupt controllers and timer in KVM, a serial port, power
//! control, and virtio devices.
//!
//! ```text
//!   Pc ─┬─ PcMemory ── VmFd, node memory, memslots, arenas on loan
//!       ├─ PcVcpu ──── thread: Gate ── KVM_RUN ── Buses ──┬─ serial, i8042, power   (on the vCPU's thread)
//!       │                                                 └─ virtio-mmio registers
//!       ├─ DeviceLoop ─ thread: terminal, queues (ioeventfd in, irqfd out), balloon ── Reclaim ── Bridge
//!       └─ Life ────── how it ends
//! ```

mod cpuid;
mod give_back;
mod guarded;
mod life;
mod machine;
mod memory;
pub mod prefault;
pub mod pvm;
mod repair;
mod setup;
mod vcpu;
mod watch;

pub use give_back::GiveBack;
pub use life::{Ending, Life};
pub use machine::{BootSpec, Pc, PcConfig, PcError};
pub use memory::{ArenaSpec, PcMemory};
pub use vcpu::PcVcpu;
