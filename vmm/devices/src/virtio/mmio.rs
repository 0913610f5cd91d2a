//! The virtio-mmio transport, version 2: the registers by which a driver finds, sets up and resets a device.
//!
//! ```text
//!   0 ── ACKNOWLEDGE, DRIVER ──> features ── FEATURES_OK ──> queues ── DRIVER_OK ──> served
//!   ^                               └─ refused if not a subset, or without VERSION_1   │ a fault: DEVICE_NEEDS_RESET
//!   └────────────────────────────── write 0 to Status ─────────────────────────────────┘
//! ```
//!
//! A write that is not allowed in the present state, or is not 32 bits wide, does nothing.

use std::io;
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::EventFd;

use super::backend::{Backend, DeviceWorker};
use super::queue::{Layout, QueueError, VirtQueue};
use super::{Interrupt, VirtioDevice};
use crate::bus::BusDevice;
use crate::{lock, signal};
use guest::GuestRam;

/// Where the register is that a driver writes a queue's index to: the place of the ioeventfds.
pub const QUEUE_NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"zaps");
const CONFIG: u64 = VIRTIO_MMIO_CONFIG as u64;

const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const FAILED: u8 = VIRTIO_CONFIG_S_FAILED as u8;
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;

/// What the transport and the rings offer for every device.
const COMMON_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// What a driver says about one queue.
#[derive(Clone, Copy, Debug)]
struct QueueRegisters {
    max_size: u16,
    ready: bool,
    layout: Layout,
}

impl QueueRegisters {
    fn new(max_size: u16) -> Self {
        Self { max_size, ready: false, layout: Layout { size: max_size.into(), ..Layout::default() } }
    }
}

/// What a driver says about the device, until it resets it.
#[derive(Debug)]
struct Registers {
    status: u8,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<QueueRegisters>,
}

impl Registers {
    fn new(sizes: &[u16]) -> Self {
        Self {
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            queues: sizes.iter().map(|&size| QueueRegisters::new(size)).collect(),
        }
    }

    fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(self.queue_sel as usize)
    }

    /// The selected queue, if it may be set up now.
    fn configurable(&mut self) -> Option<&mut QueueRegisters> {
        if self.status & (FEATURES_OK | DRIVER_OK | FAILED) != FEATURES_OK {
            return None;
        }
        self.queues.get_mut(self.queue_sel as usize)
    }
}

/// A virtio device as the guest sees it.
#[derive(Debug)]
pub struct VirtioMmio {
    backend: Arc<Mutex<Backend>>,
    interrupt: Arc<Interrupt>,
    events: Arc<[EventFd]>,
    memory: GuestRam,
    device_id: u32,
    offered: u64,
    sizes: &'static [u16],
    registers: Registers,
}

impl VirtioMmio {
    /// A transport for `device`, whose queues and buffers lie in `memory`; and the device's part on the device thread.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestRam,
        interrupt: Arc<Interrupt>,
    ) -> io::Result<(Self, DeviceWorker)> {
        let (device_id, sizes) = (device.device_id(), device.queue_sizes());
        let offered = device.features() | COMMON_FEATURES;
        let backend = Backend::new(device, interrupt.clone())?;
        let (events, backend) = (backend.events(), Arc::new(Mutex::new(backend)));
        let worker = DeviceWorker::new(backend.clone());
        let registers = Registers::new(sizes);
        Ok((Self { backend, interrupt, events, memory, device_id, offered, sizes, registers }, worker))
    }

    /// The event of each queue, to be registered as an ioeventfd on [`QUEUE_NOTIFY`] with its index as datamatch.
    pub fn queue_events(&self) -> &[EventFd] {
        &self.events
    }

    /// The device's interrupt, and what went wrong with it.
    pub fn interrupt(&self) -> &Arc<Interrupt> {
        &self.interrupt
    }

    fn status(&self) -> u8 {
        self.registers.status | if self.interrupt.needs_reset() { NEEDS_RESET } else { 0 }
    }

    fn read_register(&self, offset: u64) -> u32 {
        let registers = &self.registers;
        match offset as u32 {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device_id,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => match registers.device_features_sel {
                0 => self.offered as u32,
                1 => (self.offered >> 32) as u32,
                _ => 0,
            },
            VIRTIO_MMIO_QUEUE_NUM_MAX => registers.selected().map_or(0, |queue| queue.max_size.into()),
            VIRTIO_MMIO_QUEUE_READY => registers.selected().is_some_and(|queue| queue.ready).into(),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            VIRTIO_MMIO_STATUS => self.status().into(),
            // No shared memory: its length and place are all ones.
            VIRTIO_MMIO_SHM_LEN_LOW..=VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            VIRTIO_MMIO_CONFIG_GENERATION => self.interrupt.generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        let registers = &mut self.registers;
        match offset as u32 {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => registers.device_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => registers.driver_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES if registers.status & FEATURES_OK == 0 => {
                match registers.driver_features_sel {
                    0 => set_low(&mut registers.driver_features, value),
                    1 => set_high(&mut registers.driver_features, value),
                    _ => {}
                }
            }
            VIRTIO_MMIO_QUEUE_SEL => registers.queue_sel = value,
            VIRTIO_MMIO_QUEUE_READY => self.write_queue_ready(value == 1),
            VIRTIO_MMIO_QUEUE_NOTIFY => {
                if let Some(event) = self.events.get(value as usize) {
                    signal(event);
                }
            }
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            VIRTIO_MMIO_STATUS => self.write_status(value as u8),
            _ => {
                if let Some(queue) = registers.configurable().filter(|queue| !queue.ready) {
                    write_layout(&mut queue.layout, offset as u32, value);
                }
            }
        }
    }

    fn write_queue_ready(&mut self, ready: bool) {
        let index = self.registers.queue_sel as usize;
        if let Some(queue) = self.registers.configurable() {
            queue.ready = ready;
        } else if let Some(queue) = self.registers.queues.get_mut(index).filter(|_| !ready) {
            // A queue can be stopped at any time, and has stopped when the driver reads 0 here.
            queue.ready = false;
            lock(&self.backend).stop_queue(index);
        }
    }

    fn write_status(&mut self, value: u8) {
        if value == 0 {
            lock(&self.backend).reset();
            self.interrupt.reset();
            self.registers = Registers::new(self.sizes);
            return;
        }
        // A driver only ever adds bits; those that are the device's to set are not its to add.
        let added = value & !self.registers.status & !NEEDS_RESET;
        self.registers.status |= added & !(FEATURES_OK | DRIVER_OK);
        let driver_features = self.registers.driver_features;
        let acceptable =
            driver_features & !self.offered == 0 && driver_features >> VIRTIO_F_VERSION_1 & 1 == 1;
        if added & FEATURES_OK != 0 && acceptable {
            self.registers.status |= FEATURES_OK;
        }
        if added & DRIVER_OK != 0 && self.registers.status & FEATURES_OK != 0 {
            self.registers.status |= DRIVER_OK;
            self.activate();
        }
    }

    fn activate(&mut self) {
        self.interrupt.driver_ready();
        match self.set_up_queues() {
            Ok(queues) => lock(&self.backend).activate(self.memory.clone(), queues),
            Err(fault) => self.interrupt.fail(fault.to_string()),
        }
    }

    fn set_up_queues(&self) -> Result<Vec<VirtQueue>, QueueError> {
        let event_idx = self.registers.driver_features >> VIRTIO_RING_F_EVENT_IDX & 1 == 1;
        let each = self.registers.queues.iter().enumerate().map(|(index, registers)| {
            let mut queue = VirtQueue::unused(index, registers.max_size)?;
            if registers.ready {
                queue.set_up(registers.layout, &self.memory, event_idx)?;
            }
            Ok(queue)
        });
        each.collect()
    }
}

impl BusDevice for VirtioMmio {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG) {
            lock(&self.backend).device().read_config(offset, data);
        } else if data.len() == 4 && offset.is_multiple_of(4) {
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            lock(&self.backend).write_config(offset, data);
        } else if let (Ok(value), true) = (data.try_into(), offset.is_multiple_of(4)) {
            self.write_register(offset, u32::from_le_bytes(value));
        }
    }
}

fn write_layout(layout: &mut Layout, offset: u32, value: u32) {
    match offset {
        VIRTIO_MMIO_QUEUE_NUM => layout.size = value,
        VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut layout.descriptors, value),
        VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut layout.descriptors, value),
        VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut layout.driver, value),
        VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut layout.driver, value),
        VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut layout.device, value),
        VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut layout.device, value),
        _ => {}
    }
}

fn set_low(word: &mut u64, value: u32) {
    *word = *word & !u64::from(u32::MAX) | u64::from(value);
}

fn set_high(word: &mut u64, value: u32) {
    *word = *word & u64::from(u32::MAX) | u64::from(value) << 32;
}

#[cfg(test)]
mod tests;
