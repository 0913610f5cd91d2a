//! A PC for a stock Linux kernel: memory on nodes, interrupt controllers and timer in KVM, a serial port, power
//! control, and virtio devices.
//!
//! ```text
//!   Pc ─┬─ PcMemory ── VmFd, node memory, memslots, arenas on loan
//!       ├─ Vcpu ────── thread: Gate ── KVM_RUN ── Buses ──┬─ serial, i8042, power   (on the vCPU's thread)
//!       │                                                 └─ virtio-mmio registers
//!       ├─ DeviceLoop ─ thread: terminal, queues (ioeventfd in, irqfd out), balloon ── Reclaim ── Bridge
//!       └─ Life ────── how it ends
//! ```

mod exits;
mod give_back;
mod guarded;
mod life;
mod machine;
mod memory;
pub mod prefault;
mod watch;

#[cfg(test)]
pub(crate) use exits::PcExits;
pub use give_back::GiveBack;
pub use life::{Ending, Life};
pub use machine::{Pc, PcConfig, PcError};
pub use memory::{ArenaSpec, PcMemory};
