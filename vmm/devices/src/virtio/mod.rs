//! Virtio devices over virtio-mmio.
//!
//! ```text
//!   guest driver ── registers ──> VirtioMmio ── activate, reset, config ──┐
//!        │  ^                        │ shares                             v
//!        │  └── irqfd ── Interrupt <─┴─────────────────────────────── Backend ── VirtioDevice (block, balloon, console)
//!        │                 status, config generation,                   ^  └── Running: VirtQueues, guest memory
//!        └─ ioeventfd ─ queue event ──> DeviceWorker (device thread) ───┘
//! ```
//!
//! One lock, the backend's, covers a device and its queues. The transport does not need it for what a guest does in an
//! interrupt handler, so an interrupt is never handled at the speed of a disk.
//!
//! A device that finds a queue corrupt returns a [`QueueError`]: the backend then records the text, takes the queues
//! away, sets DEVICE_NEEDS_RESET and tells the driver. Everything comes back by the driver's reset.

pub mod backend;
pub mod balloon;
pub mod block;
pub mod console;
pub mod interrupt;
pub mod mmio;
pub mod queue;
#[cfg(test)]
mod testing;

use std::os::fd::RawFd;

pub use backend::{Backend, DeviceWorker, Running};
pub use interrupt::Interrupt;
pub use queue::QueueError;

/// One kind of device, without transport.
pub trait VirtioDevice: Send {
    /// Its number in the specification.
    fn device_id(&self) -> u32;
    /// The largest size of each queue: powers of two.
    fn queue_sizes(&self) -> &'static [u16];
    /// The features it offers, besides those of transport and rings.
    fn features(&self) -> u64;
    /// Copies from the configuration space; what lies beyond it stays as it is, zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// The driver writes to the configuration space.
    fn write_config(&mut self, offset: u64, data: &[u8]);
    /// The driver is ready.
    fn activate(&mut self) {}
    /// Forgets everything about the driver.
    fn reset(&mut self);
    /// The driver has made buffers available in a queue: serves it by [`Running::serve`].
    fn serve(&mut self, queue: usize, running: &mut Running) -> Result<(), QueueError>;
    /// A descriptor of the device's own, watched edge-triggered for reading and writing.
    fn source(&self) -> Option<RawFd> {
        None
    }
    /// Something happened to it; `running` is `None` while there is no driver.
    fn source_ready(&mut self, _running: Option<&mut Running>) -> Result<(), QueueError> {
        Ok(())
    }
}

/// Copies what a driver reads at `offset` of a configuration space.
fn copy_config(space: &[u8], offset: u64, data: &mut [u8]) {
    let from = usize::try_from(offset).unwrap_or(usize::MAX);
    let part = space.get(from..).unwrap_or_default();
    let len = part.len().min(data.len());
    data[..len].copy_from_slice(&part[..len]);
}
