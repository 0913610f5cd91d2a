//! A driver that keeps to the specification, register by register.

use std::sync::Arc;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK,
};
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use vm_memory::{Bytes, GuestAddress};

use crate::bus::BusDevice;
use crate::virtio::mmio::VirtioMmio;
use crate::virtio::{DeviceWorker, Interrupt, VirtioDevice};
use crate::{new_event, take_signal};
use guest::GuestRam;

/// Two regions of RAM with a hole between them.
pub const RAM: [(u64, usize); 2] = [(0, 1 << 20), (2 << 20, 1 << 20)];
/// Where buffers may lie: behind all rings.
pub const DATA: u64 = 0x40000;
/// Where the rings of the first queue lie, and how far from one queue's to the next's.
const RINGS: (u64, u64) = (0x10000, 0x4000);

/// Every feature that the device offers, but EVENT_IDX.
pub const PLAIN: u64 = !(1 << VIRTIO_RING_F_EVENT_IDX);
/// Every feature that the device offers.
pub const ALL: u64 = u64::MAX;

pub fn memory() -> GuestRam {
    GuestRam::mapped(&RAM)
}

pub fn interrupt() -> Arc<Interrupt> {
    Arc::new(Interrupt::new(new_event().unwrap()))
}

/// One descriptor: address, length, flags.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor(pub u64, pub u32, pub u16);

pub const fn readable(address: u64, len: u32) -> Descriptor {
    Descriptor(address, len, 0)
}

pub const fn writable(address: u64, len: u32) -> Descriptor {
    Descriptor(address, len, VRING_DESC_F_WRITE as u16)
}

/// The driver's side of a queue.
#[derive(Debug)]
pub struct Rings {
    pub base: u64,
    pub size: u16,
    next_descriptor: u16,
    pub available: u16,
    seen: u16,
    event_idx: bool,
}

impl Rings {
    pub const fn table(&self) -> u64 {
        self.base
    }
    pub const fn driver(&self) -> u64 {
        self.base + 0x1000
    }
    pub const fn device(&self) -> u64 {
        self.base + 0x2000
    }
    pub const fn indirect(&self) -> u64 {
        self.base + 0x3000
    }
}

pub struct Driver {
    pub mmio: VirtioMmio,
    pub worker: DeviceWorker,
    pub memory: GuestRam,
    pub rings: Vec<Rings>,
}

impl Driver {
    pub fn new(device: Box<dyn VirtioDevice>, memory: GuestRam, interrupt: Arc<Interrupt>) -> Self {
        let (mmio, worker) = VirtioMmio::new(device, memory.clone(), interrupt).unwrap();
        Self { mmio, worker, memory, rings: Vec::new() }
    }

    pub fn read(&mut self, register: u32) -> u32 {
        let mut data = [0u8; 4];
        self.mmio.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&mut self, register: u32, value: u32) {
        self.mmio.write(register.into(), &value.to_le_bytes());
    }

    pub fn offered(&mut self) -> u64 {
        let half = |driver: &mut Self, select| {
            driver.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
            u64::from(driver.read(VIRTIO_MMIO_DEVICE_FEATURES))
        };
        half(self, 0) | half(self, 1) << 32
    }

    pub fn negotiate(&mut self, features: u64) {
        for bit in [VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER] {
            self.add_status(bit);
        }
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.write(VIRTIO_MMIO_DRIVER_FEATURES, half);
        }
        self.add_status(VIRTIO_CONFIG_S_FEATURES_OK);
    }

    pub fn add_status(&mut self, bit: u32) {
        let status = self.read(VIRTIO_MMIO_STATUS);
        self.write(VIRTIO_MMIO_STATUS, status | bit);
    }

    pub fn reset(&mut self) {
        self.write(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(self.read(VIRTIO_MMIO_STATUS), 0, "a reset takes every bit away");
        assert_eq!(self.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    }

    /// Resets the device and brings it to DRIVER_OK with those of its features that are in `wanted`.
    pub fn set_up(&mut self, wanted: u64) {
        self.reset();
        let features = self.offered() & wanted;
        self.negotiate(features);
        assert_ne!(
            self.read(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_FEATURES_OK,
            0,
            "the features are accepted"
        );
        self.rings.clear();
        for index in 0.. {
            self.write(VIRTIO_MMIO_QUEUE_SEL, index);
            let size = self.read(VIRTIO_MMIO_QUEUE_NUM_MAX);
            if size == 0 {
                break;
            }
            assert_eq!(self.read(VIRTIO_MMIO_QUEUE_READY), 0);
            let event_idx = features >> VIRTIO_RING_F_EVENT_IDX & 1 == 1;
            let base = RINGS.0 + u64::from(index) * RINGS.1;
            let rings = Rings { event_idx, ..Self::rings_at(base, size as u16) };
            self.put(base, &[0; RINGS.1 as usize]);
            self.place(&rings);
            self.write(VIRTIO_MMIO_QUEUE_READY, 1);
            assert_eq!(self.read(VIRTIO_MMIO_QUEUE_READY), 1);
            self.rings.push(rings);
        }
        assert!(!self.rings.is_empty());
        self.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
        self.run();
        assert!(!self.mmio.interrupt().needs_reset(), "{:?}", self.mmio.interrupt().last_fault());
    }

    pub const fn rings_at(base: u64, size: u16) -> Rings {
        Rings { base, size, next_descriptor: 0, available: 0, seen: 0, event_idx: false }
    }

    /// Tells the device where the selected queue lies.
    pub fn place(&mut self, rings: &Rings) {
        self.write(VIRTIO_MMIO_QUEUE_NUM, rings.size.into());
        let registers = [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, rings.table()),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, rings.driver()),
            (VIRTIO_MMIO_QUEUE_USED_LOW, rings.device()),
        ];
        for (low, address) in registers {
            self.write(low, address as u32);
            self.write(low + 4, (address >> 32) as u32);
        }
    }

    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    pub fn get16(&self, address: u64) -> u16 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    pub fn put_descriptor(&self, table: u64, index: u16, descriptor: Descriptor, next: u16) {
        let Descriptor(address, len, flags) = descriptor;
        let [a, b, c, d]: [&[u8]; 4] =
            [&address.to_le_bytes(), &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
        self.put(table + u64::from(index) * 16, &[a, b, c, d].concat());
    }

    /// Makes a head available.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let (ring, size, available) =
            (self.rings[queue].driver(), self.rings[queue].size, self.rings[queue].available);
        self.put(ring + 4 + u64::from(available % size) * 2, &head.to_le_bytes());
        self.put(ring + 2, &available.wrapping_add(1).to_le_bytes());
        self.rings[queue].available = available.wrapping_add(1);
    }

    /// Makes a chain available and returns its head. Does not notify.
    pub fn add(&mut self, queue: usize, chain: &[Descriptor]) -> u16 {
        let (table, size, first) =
            (self.rings[queue].table(), self.rings[queue].size, self.rings[queue].next_descriptor);
        for (at, &Descriptor(address, len, flags)) in chain.iter().enumerate() {
            let index = (first + at as u16) % size;
            let more = if at + 1 < chain.len() { VRING_DESC_F_NEXT as u16 } else { 0 };
            self.put_descriptor(table, index, Descriptor(address, len, flags | more), (index + 1) % size);
        }
        self.rings[queue].next_descriptor = (first + chain.len() as u16) % size;
        self.offer(queue, first);
        first
    }

    /// The same through an indirect table.
    pub fn add_indirect(&mut self, queue: usize, chain: &[Descriptor]) -> u16 {
        let table = self.rings[queue].indirect();
        for (index, &Descriptor(address, len, flags)) in chain.iter().enumerate() {
            let more = if index + 1 < chain.len() { VRING_DESC_F_NEXT as u16 } else { 0 };
            self.put_descriptor(
                table,
                index as u16,
                Descriptor(address, len, flags | more),
                index as u16 + 1,
            );
        }
        self.add(queue, &[Descriptor(table, chain.len() as u32 * 16, VRING_DESC_F_INDIRECT as u16)])
    }

    /// Notifies the device by the register, and lets it work.
    pub fn kick(&mut self, queue: usize) {
        self.write(VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32);
        self.run();
    }

    /// Lets the device work until it has nothing to do; returns the number of turns.
    pub fn run(&mut self) -> usize {
        let mut turns = 0;
        while self.worker.turn() {
            turns += 1;
            assert!(turns < 1000, "the device never comes to rest");
        }
        turns
    }

    /// What the device has used since this was last asked: heads and lengths.
    pub fn used(&mut self, queue: usize) -> Vec<(u32, u32)> {
        let (ring, size, seen) = (self.rings[queue].device(), self.rings[queue].size, self.rings[queue].seen);
        let index = self.get16(ring + 2);
        let count = index.wrapping_sub(seen);
        let element = |at: u16| {
            let entry = self.get(ring + 4 + u64::from(seen.wrapping_add(at) % size) * 8, 8);
            let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
            (word(0), word(4))
        };
        // The ring holds the last `size` at most.
        let used = (count.saturating_sub(size)..count).map(element).collect();
        self.rings[queue].seen = index;
        if self.rings[queue].event_idx {
            // `used_event`: tell me about the next one.
            let at = self.rings[queue].driver() + 4 + u64::from(size) * 2;
            self.put(at, &index.to_le_bytes());
        }
        used
    }

    /// Takes the interrupt: whether it was raised, and the reasons, which are acknowledged.
    pub fn take_interrupt(&mut self) -> (bool, u32) {
        let raised = take_signal(self.mmio.interrupt().irq());
        let reasons = self.read(VIRTIO_MMIO_INTERRUPT_STATUS);
        self.write(VIRTIO_MMIO_INTERRUPT_ACK, reasons);
        (raised, reasons)
    }

    /// One chain, from available to used; returns the used length.
    pub fn transact(&mut self, queue: usize, chain: &[Descriptor]) -> u32 {
        let head = self.add(queue, chain);
        self.kick(queue);
        let used = self.used(queue);
        assert_eq!(used.len(), 1, "{:?}", self.mmio.interrupt().last_fault());
        assert_eq!(used[0].0, u32::from(head));
        used[0].1
    }
}
