//! The transport, with a device that copies what it reads to what it may write.

use super::super::Running;
use super::*;
use proptest::prelude::*;

use crate::take_signal;
use crate::virtio::queue::{Outcome, copy_from, copy_to, lies_in_ram, total_len};
use crate::virtio::testing::driver::{ALL, DATA, PLAIN, interrupt};
use crate::virtio::testing::hostile::{cheat, run_cheat, run_vandal, vandal};
use crate::virtio::testing::{Descriptor, Driver, memory, readable, writable};

const DEVICE_FEATURE: u64 = 1 << 3;

/// Copies, and lets 8 bytes of configuration be written.
#[derive(Default)]
struct Echo {
    config: [u8; 8],
}

impl VirtioDevice for Echo {
    fn device_id(&self) -> u32 {
        42
    }
    fn queue_sizes(&self) -> &'static [u16] {
        &[8, 16]
    }
    fn features(&self) -> u64 {
        DEVICE_FEATURE
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::super::copy_config(&self.config, offset, data);
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (at, &byte) in (offset..self.config.len() as u64).zip(data) {
            self.config[at as usize] = byte;
        }
    }
    fn reset(&mut self) {
        *self = Self::default();
    }
    fn serve(&mut self, queue: usize, running: &mut Running) -> Result<(), QueueError> {
        running.serve(queue, &mut |memory, chain| {
            if !chain.readable.iter().chain(chain.writable).all(|&buffer| lies_in_ram(memory, buffer)) {
                return Err(QueueError::Chain { queue, head: chain.head, what: "lies outside of RAM" });
            }
            let len = total_len(chain.readable).min(total_len(chain.writable)).min(1 << 16);
            let mut bytes = vec![0; len as usize];
            copy_from(memory, chain.readable, 0, &mut bytes).unwrap();
            copy_to(memory, chain.writable, 0, &bytes).unwrap();
            Ok(Outcome::Used(len as u32))
        })
    }
}

fn echo() -> Driver {
    Driver::new(Box::<Echo>::default(), memory(), interrupt())
}

fn works(driver: &mut Driver, features: u64) {
    driver.set_up(features);
    driver.put(DATA, b"what the driver says");
    driver.take_interrupt();
    let len = driver.transact(0, &[readable(DATA, 20), writable(DATA + 0x100, 12), writable(0x20_0000, 100)]);
    assert_eq!(len, 20);
    assert_eq!(driver.get(DATA + 0x100, 12), b"what the dri");
    assert_eq!(driver.get(0x20_0000, 8), b"ver says");
    assert_eq!(driver.take_interrupt(), (true, VIRTIO_MMIO_INT_VRING));
    assert_eq!(driver.take_interrupt(), (false, 0));
}

#[test]
fn an_honest_driver_is_served() {
    for features in [ALL, PLAIN] {
        works(&mut echo(), features);
    }
}

#[test]
fn the_device_says_what_it_is() {
    let mut driver = echo();
    assert_eq!(driver.read(VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
    assert_eq!(driver.read(VIRTIO_MMIO_VERSION), 2);
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_ID), 42);
    assert_eq!(driver.offered(), DEVICE_FEATURE | COMMON_FEATURES);
    driver.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_FEATURES), 0);
    assert_eq!(driver.read(VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    assert_eq!(driver.read(VIRTIO_MMIO_SHM_LEN_HIGH), u32::MAX);
}

#[test]
fn features_that_were_not_offered_and_a_driver_without_version_1_are_refused() {
    let version_1 = 1u64 << VIRTIO_F_VERSION_1;
    for (features, accepted) in [
        (version_1, true),
        (version_1 | DEVICE_FEATURE, true),
        (DEVICE_FEATURE, false),
        (version_1 | 1 << 4, false),
    ] {
        let mut driver = echo();
        driver.negotiate(features);
        assert_eq!(
            driver.read(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_FEATURES_OK != 0,
            accepted,
            "{features:#x}"
        );
        // Without FEATURES_OK no queue can be set up and no driver is ever OK.
        driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), u32::from(accepted));
        driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
        driver.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
        assert_eq!(driver.read(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_DRIVER_OK != 0, accepted);
        // Once accepted, features stay.
        driver.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
        driver.write(VIRTIO_MMIO_DRIVER_FEATURES, u32::MAX);
        driver.add_status(VIRTIO_CONFIG_S_FEATURES_OK);
        assert_eq!(driver.read(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_FEATURES_OK != 0, accepted);
    }
}

#[test]
fn the_configuration_space_ends_where_it_ends() {
    let mut driver = echo();
    driver.mmio.write(0x100, &0x1122_3344_5566_7788u64.to_le_bytes());
    for (offset, size, expected) in [
        (0x100, 1, 0x88u64),
        (0x101, 2, 0x6677),
        (0x104, 4, 0x1122_3344),
        (0x106, 4, 0x1122),
        (0x108, 8, 0),
        (u64::MAX, 8, 0),
    ] {
        let mut data = [0xaau8; 8];
        driver.mmio.read(offset, &mut data[..size]);
        data[size..].fill(0);
        assert_eq!(u64::from_le_bytes(data), expected, "{size} bytes at {offset:#x}");
    }
    driver.mmio.write(0x107, &[0, 1, 2, 3]);
    driver.mmio.write(u64::MAX, &[1]);
    let mut data = [0u8; 8];
    driver.mmio.read(0x100, &mut data);
    assert_eq!(u64::from_le_bytes(data), 0x0022_3344_5566_7788);
}

#[test]
fn registers_are_32_bits_wide() {
    let mut driver = echo();
    for (offset, size) in [(0, 1), (0, 2), (0, 8), (2, 4), (0xfc, 8)] {
        let mut data = [0xaau8; 8];
        driver.mmio.read(offset, &mut data[..size]);
        assert_eq!(data[..size], [0; 8][..size]);
    }
    driver.mmio.write(VIRTIO_MMIO_STATUS.into(), &[1]);
    driver.mmio.write(VIRTIO_MMIO_STATUS.into(), &1u64.to_le_bytes());
    assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 0);
}

#[test]
fn a_changed_configuration_raises_the_interrupt_of_a_ready_driver_only() {
    let mut driver = echo();
    let interrupt = driver.mmio.interrupt().clone();
    let before = driver.read(VIRTIO_MMIO_CONFIG_GENERATION);
    interrupt.config_changed();
    assert_ne!(driver.read(VIRTIO_MMIO_CONFIG_GENERATION), before);
    assert_eq!(driver.take_interrupt(), (false, 0));
    driver.set_up(ALL);
    interrupt.config_changed();
    assert_eq!(driver.take_interrupt(), (true, VIRTIO_MMIO_INT_CONFIG));
    driver.reset();
    interrupt.config_changed();
    assert_eq!(driver.take_interrupt(), (false, 0));
}

#[test]
fn a_fault_stops_the_device_until_reset_and_says_why() {
    let mut driver = echo();
    driver.set_up(ALL);
    driver.take_interrupt();
    driver.add(0, &[readable(0x18_0000, 4), writable(DATA, 4)]);
    driver.kick(0);
    assert_eq!(driver.read(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_CONFIG_S_NEEDS_RESET);
    assert_eq!(driver.take_interrupt(), (true, VIRTIO_MMIO_INT_CONFIG));
    let fault = driver.mmio.interrupt().last_fault().unwrap();
    assert_eq!(fault, "queue 0: the descriptor chain at 0 lies outside of RAM");
    // Stopped: an honest request is not served, and the driver cannot take the bit away.
    driver.add(0, &[readable(DATA, 4), writable(DATA + 4, 4)]);
    driver.kick(0);
    assert_eq!(driver.used(0), []);
    driver.write(VIRTIO_MMIO_STATUS, 0xf);
    assert_ne!(driver.read(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    works(&mut driver, ALL);
    assert!(!driver.mmio.interrupt().needs_reset());
}

/// A descriptor and the index of the next.
type Linked = (Descriptor, u16);

/// What is wrong with a chain, and what is said about it.
#[test]
fn each_kind_of_broken_chain_is_a_fault_by_name() {
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;
    let table = |driver: &mut Driver, descriptors: &[(Descriptor, u16)]| {
        for (index, &(descriptor, next)) in descriptors.iter().enumerate() {
            driver.put_descriptor(driver.rings[0].table(), index as u16, descriptor, next);
        }
    };
    let cases: [(&str, u16, &[Linked]); 7] = [
        ("breaks off, or never ends", 8, &[]),
        ("breaks off, or never ends", 0, &[(Descriptor(DATA, 4, NEXT), 0)]),
        ("breaks off, or never ends", 0, &[(Descriptor(DATA, 4, NEXT), 8)]),
        ("breaks off, or never ends", 0, &[(Descriptor(DATA, 15, INDIRECT), 0)]),
        (
            "breaks off, or never ends",
            0,
            &[(Descriptor(DATA, 4, NEXT), 1), (Descriptor(DATA, u32::MAX, 0), 0)],
        ),
        ("has a buffer that wraps around the address space", 0, &[(Descriptor(u64::MAX - 3, 5, 0), 0)]),
        (
            "has a readable buffer after a writable one",
            0,
            &[(Descriptor(DATA, 4, NEXT | WRITE), 1), (Descriptor(DATA, 4, 0), 0)],
        ),
    ];
    for (expected, head, descriptors) in cases {
        let mut driver = echo();
        driver.set_up(ALL);
        table(&mut driver, descriptors);
        driver.offer(0, head);
        driver.kick(0);
        let fault = driver.mmio.interrupt().last_fault().expect(expected);
        assert!(fault.ends_with(expected), "{fault}, not {expected}");
        assert_eq!(driver.used(0), []);
    }
}

#[test]
fn an_indirect_table_longer_than_any_driver_needs_is_a_fault() {
    let mut driver = echo();
    driver.set_up(ALL);
    for index in 0..2000u16 {
        driver.put_descriptor(DATA, index, Descriptor(DATA, 0, 1), index + 1);
    }
    driver.add(0, &[Descriptor(DATA, 2000 * 16, 4)]);
    driver.kick(0);
    assert!(driver.mmio.interrupt().last_fault().unwrap().ends_with("is too long"));
}

#[test]
fn an_index_that_jumps_further_than_the_queue_is_long_is_a_fault() {
    let mut driver = echo();
    driver.set_up(ALL);
    driver.put(driver.rings[0].driver() + 2, &9u16.to_le_bytes());
    driver.kick(0);
    let fault = driver.mmio.interrupt().last_fault().unwrap();
    assert!(fault.starts_with("queue 0: invalid available ring index"), "{fault}");
}

#[test]
fn queues_that_cannot_be_where_they_are_said_to_be_are_a_fault() {
    let rings = |base| Driver::rings_at(base, 8);
    let sized = |size| Driver::rings_at(0x10000, size);
    let places = [
        (rings(0x10_0000), "a ring lies outside of RAM"),
        (rings(u64::MAX - 0x7fff), "a ring lies outside of RAM"),
        (rings(0x10001), "virtio queue descriptor table breaks alignment constraints"),
        (sized(0), "invalid queue size"),
        (sized(7), "invalid queue size"),
        (sized(16), "invalid queue size"),
    ];
    for (place, expected) in places {
        let mut driver = echo();
        let features = driver.offered();
        driver.negotiate(features);
        driver.place(&place);
        driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
        driver.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
        driver.run();
        let fault = driver.mmio.interrupt().last_fault().expect(expected);
        assert_eq!(fault, format!("queue 0: {expected}"));
        works(&mut driver, ALL);
    }
}

#[test]
fn a_queue_can_be_stopped_while_the_device_runs() {
    let mut driver = echo();
    driver.set_up(ALL);
    driver.write(VIRTIO_MMIO_QUEUE_SEL, 0);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
    driver.add(0, &[readable(DATA, 4), writable(DATA + 4, 4)]);
    driver.kick(0);
    assert_eq!(driver.used(0), []);
    // It stays stopped until the device is reset.
    driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
    works(&mut driver, ALL);
}

#[test]
fn a_reset_forgets_buffers_not_yet_served() {
    let mut driver = echo();
    driver.set_up(ALL);
    driver.add(0, &[readable(DATA, 4), writable(DATA + 4, 4)]);
    driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    driver.reset();
    driver.run();
    assert_eq!(driver.used(0), [], "nothing is used after a reset");
}

#[test]
fn a_turn_is_as_long_as_the_queue_and_others_come_first() {
    let mut driver = echo();
    driver.set_up(ALL);
    for _ in 0..8 {
        driver.add(0, &[readable(DATA, 4)]);
    }
    driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    assert!(driver.worker.turn());
    assert_eq!(driver.used(0).len(), 8);
    // Whether there is more is looked at in the next turn.
    assert!(take_signal(&driver.mmio.queue_events()[0]));
    assert_eq!(driver.run(), 0);
}

#[test]
fn with_event_idx_the_interrupt_comes_when_it_was_asked_for() {
    let mut driver = echo();
    driver.set_up(ALL);
    driver.take_interrupt();
    // `used_event` = 2: tell me when the third has been used.
    let used_event = driver.rings[0].driver() + 4 + 2 * 8;
    driver.put(used_event, &2u16.to_le_bytes());
    for expected in [false, false, true, false] {
        driver.add(0, &[readable(DATA, 4)]);
        driver.kick(0);
        assert_eq!(driver.take_interrupt().0, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_cheat_gets_nothing_and_the_device_survives(attack in cheat(2), after in prop::bool::ANY) {
        let mut driver = echo();
        run_cheat(&mut driver, &attack);
        works(&mut driver, if after { ALL } else { PLAIN });
    }

    #[test]
    fn a_vandal_breaks_nothing(attack in vandal(2)) {
        let mut driver = echo();
        run_vandal(&mut driver, &attack);
        works(&mut driver, ALL);
    }
}
