//! What a device tells its driver outside of the queues.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::EventFd;

use crate::{lock, signal};

/// The interrupt of one device, with what the driver reads to learn its reason. Shared by the transport, the device
/// thread, and the host's handles that change the device's configuration.
#[derive(Debug)]
pub struct Interrupt {
    irq: EventFd,
    status: AtomicU32,
    generation: AtomicU32,
    driver_ok: AtomicBool,
    needs_reset: AtomicBool,
    fault: Mutex<Option<String>>,
}

impl Interrupt {
    /// An interrupt that is raised through `irq`, to be registered as an irqfd.
    pub const fn new(irq: EventFd) -> Self {
        Self {
            irq,
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            driver_ok: AtomicBool::new(false),
            needs_reset: AtomicBool::new(false),
            fault: Mutex::new(None),
        }
    }

    /// The event that raises it.
    pub const fn irq(&self) -> &EventFd {
        &self.irq
    }

    /// The device has used buffers.
    pub fn used_buffers(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// The device's configuration has changed.
    pub fn config_changed(&self) {
        // Pairs with `driver_ready`: a change goes either before DRIVER_OK, and the driver reads it, or after, and the
        // driver is told.
        self.generation.fetch_add(1, Ordering::SeqCst);
        if self.driver_ok.load(Ordering::SeqCst) {
            self.raise(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    /// The device cannot go on before a reset.
    pub fn fail(&self, reason: String) {
        *lock(&self.fault) = Some(reason);
        self.needs_reset.store(true, Ordering::SeqCst);
        self.config_changed();
    }

    /// Why the device last had to be reset.
    pub fn last_fault(&self) -> Option<String> {
        lock(&self.fault).clone()
    }

    /// Whether it has to be now: DEVICE_NEEDS_RESET.
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    pub(super) fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    pub(super) fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    pub(super) fn driver_ready(&self) {
        self.driver_ok.store(true, Ordering::SeqCst);
    }

    /// After a reset by the driver. The last fault is kept: it is for the host.
    pub(super) fn reset(&self) {
        self.driver_ok.store(false, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
        self.status.store(0, Ordering::SeqCst);
    }

    /// Raised even if the reason is there already: the driver may have read the status and not acknowledged it yet, and
    /// then this reason goes with that acknowledgement.
    fn raise(&self, reason: u32) {
        self.status.fetch_or(reason, Ordering::SeqCst);
        signal(&self.irq);
    }
}
