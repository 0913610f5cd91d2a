//! What a Linux guest finds around its vCPUs: a serial port, power control, and virtio devices.
//!
//! ```text
//!   vCPU threads                              the device thread (loop_thread)
//!   ────────────                              ───────────────────────────────
//!   KVM_EXIT_IO ───> Bus (ports) ─┬─ SerialPort <──────────── SerialInput <── stdin
//!                                 ├─ I8042, AcpiPower ──> PowerSwitch ──> the main thread ends the VM
//!   KVM_EXIT_MMIO ─> Bus (MMIO) ──┴─ VirtioMmio (registers)
//!                                        │ activate, reset, config
//!                                        v
//!                                     Backend: device + queues <── serve ── DeviceWorker <── ioeventfd of a queue
//!                                        │                                               <── a device's own fd
//!                                        └─ Interrupt ──> irqfd ──> the guest
//! ```
//!
//! Nothing here knows KVM. The machine registers each [`EventFd`]: those of
//! [`virtio::mmio::VirtioMmio::queue_events`] as ioeventfds on the queue-notify register with the queue's index as
//! datamatch, those of the interrupts as irqfds. A notification without an ioeventfd arrives as a register write and
//! does the same.
//!
//! Locks are taken in the order transport, backend; a vCPU thread holds them only while it handles an exit, when it is
//! outside the guest, so that the device thread may stop the vCPUs while it holds a backend.

mod arch;
pub mod bus;
pub mod loop_thread;
pub mod power;
pub mod serial;
pub mod terminal;
pub mod virtio;

pub use arch::*;

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

/// A non-blocking eventfd.
pub fn new_event() -> io::Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
}

/// Makes an eventfd readable.
pub fn signal(event: &EventFd) {
    // Fails only when the counter is full, and then the descriptor is readable already.
    let _ = event.write(1);
}

/// Makes an eventfd unreadable, and says whether it was readable.
pub fn take_signal(event: &EventFd) -> bool {
    event.read().is_ok()
}

/// Locks a device. After a panic in one its state is still memory-safe, and the panic itself is reported by the thread
/// that it happened on.
pub(crate) fn lock<T: ?Sized>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until a descriptor is readable, a minute at most.
#[cfg(test)]
fn wait(fd: &impl std::os::fd::AsRawFd) {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one live `pollfd` is handed over, and its descriptor belongs to `fd`, which lives on.
    assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 60_000) }, 1, "nothing to read");
}

#[cfg(test)]
harness::watch_libtest!();
