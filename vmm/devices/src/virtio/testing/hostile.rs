//! A driver that does what it likes.
//!
//! Two kinds. A *cheat* sets the device up properly and then lies in descriptors, indirect tables and the available
//! ring; its own rings stay where no buffer reaches, so that the used ring tells what the device did. A *vandal* also
//! writes to any register in any order, and to any memory. After either the device is reset, and must work.

use std::collections::BTreeSet;

use proptest::prelude::*;
use virtio_bindings::virtio_mmio::*;

use super::driver::{ALL, DATA, Descriptor, Driver, PLAIN, RAM, readable, writable};
use crate::bus::BusDevice;

/// One thing that a hostile driver does.
#[derive(Clone, Debug)]
pub enum Act {
    /// Writes a descriptor into the table of a queue.
    Describe { queue: usize, index: u16, descriptor: Descriptor, next: u16 },
    /// Writes one into an indirect table.
    DescribeIndirect { queue: usize, index: u16, descriptor: Descriptor, next: u16 },
    /// Makes a chain available that is properly linked, whatever its buffers are.
    Submit { queue: usize, chain: Vec<Descriptor> },
    /// Makes heads available, and then says that the index has moved on by `jump` more.
    Offer { queue: usize, heads: Vec<u16>, jump: u16 },
    /// Writes bytes where buffers lie.
    Fill { at: u64, bytes: Vec<u8> },
    /// Notifies.
    Kick { queue: u32 },
    /// The device's own descriptor becomes ready.
    Source,
    /// Reads a register or the configuration space.
    Read { offset: u64, size: usize },
    /// Writes to the configuration space.
    Configure { offset: u64, size: usize, value: u64 },
    /// Writes to any register. Vandals only.
    Register { offset: u64, size: usize, value: u64 },
    /// Writes to memory anywhere. Vandals only.
    Scribble { at: u64, bytes: Vec<u8> },
}

fn edge(values: &'static [u64]) -> impl Strategy<Value = u64> {
    prop::sample::select(values)
}

/// Places for buffers in RAM, so few that what one act fills another one uses.
fn place() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0u64..8, 1 => 0u64..0x100].prop_map(|place| DATA + place * 0x200)
}

/// Addresses of buffers: in RAM, at its edges, in the hole, behind everything; never in a ring.
fn address() -> impl Strategy<Value = u64> {
    const END: u64 = RAM[0].0 + RAM[0].1 as u64;
    prop_oneof![
        6 => place(),
        1 => edge(&[END - 1, END - 512, END, RAM[1].0, RAM[1].0 + 511, (RAM[1].0 + RAM[1].1 as u64) - 7, 3 << 20, 1 << 32]),
        1 => edge(&[u64::MAX, u64::MAX - 15, u64::MAX - 4095, i64::MAX as u64, 1 << 63]),
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => prop::sample::select(&[1u32, 8, 16, 16, 17, 512, 528, 513, 1024, 4096][..]),
        2 => prop::sample::select(&[0, 4, 10, 20, 32, 48, 65536, u32::MAX, u32::MAX - 1, 1 << 31, 1 << 20][..]),
        1 => 0u32..10_000,
    ]
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    // NEXT, WRITE, INDIRECT in every combination, NEXT and WRITE the most.
    let flags = prop_oneof![6 => 0u16..4, 1 => 0u16..8, 1 => any::<u16>()];
    (address(), length(), flags).prop_map(|(address, len, flags)| Descriptor(address, len, flags))
}

/// Buffers in the right order, as a device expects them: requests that are wrong only in what they ask.
fn chain() -> impl Strategy<Value = Vec<Descriptor>> {
    let buffer = (address(), length(), any::<bool>());
    let page = (prop_oneof![4 => 0u64..0x300, 1 => any::<u64>()], 0u32..4, any::<bool>())
        .prop_map(|(page, pages, write)| (page.wrapping_mul(0x1000), pages * 0x1000, write))
        .prop_filter("no ring is a buffer", |&(at, ..)| at >= DATA);
    prop::collection::vec(prop_oneof![3 => buffer, 1 => page], 1..6).prop_map(|mut buffers| {
        buffers.sort_by_key(|&(_, _, write)| write);
        buffers.into_iter().map(|(at, len, write)| Descriptor(at, len, if write { 2 } else { 0 })).collect()
    })
}

/// An index into a table, mostly a small one so that chains meet.
fn index() -> impl Strategy<Value = u16> {
    prop_oneof![8 => 0u16..8, 1 => 0u16..200, 1 => any::<u16>()]
}

/// What may well be the beginning of a request, a control message, a list of pages.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        3 => prop::sample::select(&[0u32, 1, 2, 3, 4, 5, 8, 11, 13, 0x40, 0x41, 0x100, 0x210, u32::MAX][..]),
        1 => any::<u32>(),
    ];
    let request = (0u32..15, 0u32..80).prop_map(|(kind, sector)| vec![kind, 0, sector, 0]);
    prop_oneof![2 => prop::collection::vec(word, 1..12), 1 => request]
        .prop_map(|words| words.into_iter().flat_map(u32::to_le_bytes).collect())
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0u64..0x50).prop_map(|register| register * 4),
        1 => 0u64..0x180,
        1 => edge(&[0xfc, 0xff, 0x100, 0xfff, u32::MAX as u64, u64::MAX]),
    ]
}

fn size() -> impl Strategy<Value = usize> {
    prop::sample::select(&[1usize, 2, 4, 8][..])
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0u64..16,
        1 => edge(&[0x40, 0x80, 0xff, 0x10000, 0x11000, 0x12000, 0x14000, u32::MAX as u64]),
        1 => any::<u64>(),
    ]
}

/// What a cheat does, on a device of `queues` queues.
fn cheating(queues: usize) -> impl Strategy<Value = Act> {
    let describe = || (0..queues, index(), descriptor(), index());
    prop_oneof![
        8 => describe().prop_map(|(queue, index, descriptor, next)| Act::Describe { queue, index, descriptor, next }),
        2 => describe().prop_map(|(queue, index, descriptor, next)| {
            Act::DescribeIndirect { queue, index: index % 256, descriptor, next }
        }),
        // A descriptor that really refers to the indirect table.
        1 => (0..queues, 0u16..8, prop::sample::select(&[16u32, 32, 48, 15, 0, 1 << 20, u32::MAX - 15][..]))
            .prop_map(|(queue, index, len)| Act::Describe {
                queue, index, descriptor: Descriptor(0x13000 + queue as u64 * 0x4000, len, 4), next: 0,
            }),
        8 => (0..queues, chain()).prop_map(|(queue, chain)| Act::Submit { queue, chain }),
        6 => (0..queues, prop::collection::vec(index(), 1..4)).prop_map(|(queue, heads)| Act::Offer { queue, heads, jump: 0 }),
        1 => (0..queues, prop::collection::vec(index(), 0..4), any::<u16>())
            .prop_map(|(queue, heads, jump)| Act::Offer { queue, heads, jump }),
        4 => (place(), bytes()).prop_map(|(at, bytes)| Act::Fill { at, bytes }),
        4 => (0..queues as u32 + 2).prop_map(|queue| Act::Kick { queue }),
        1 => Just(Act::Source),
        1 => (offset(), size()).prop_map(|(offset, size)| Act::Read { offset, size }),
        1 => (offset(), size(), value()).prop_map(|(offset, size, value)| Act::Configure { offset, size, value }),
    ]
}

fn vandalism(queues: usize) -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => cheating(queues),
        3 => (offset(), size(), value()).prop_map(|(offset, size, value)| Act::Register { offset, size, value }),
        // Registers in full width, so that they have an effect.
        4 => ((0u64..0x50).prop_map(|register| register * 4), value())
            .prop_map(|(offset, value)| Act::Register { offset, size: 4, value }),
        1 => (0u64..0x40000, bytes()).prop_map(|(at, bytes)| Act::Scribble { at, bytes }),
    ]
}

/// The features that a hostile driver accepts before it turns, and what it then does.
#[derive(Clone, Debug)]
pub struct Attack {
    features: u64,
    acts: Vec<Act>,
}

fn features() -> impl Strategy<Value = u64> {
    prop::sample::select(&[ALL, PLAIN][..])
}

pub fn cheat(queues: usize) -> impl Strategy<Value = Attack> {
    (features(), prop::collection::vec(cheating(queues), 1..60))
        .prop_map(|(features, acts)| Attack { features, acts })
}

pub fn vandal(queues: usize) -> impl Strategy<Value = Attack> {
    (features(), prop::collection::vec(vandalism(queues), 1..80))
        .prop_map(|(features, acts)| Attack { features, acts })
}

/// Whether an attack kept its hands off the rings' places, so that the used rings are the device's own word.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Cheat,
    Vandal,
}

/// What a queue has been given and has given back.
#[derive(Debug, Default, Clone)]
struct Account {
    /// Every head that was ever in the available ring; a slot never written holds 0.
    heads: BTreeSet<u32>,
    /// How far the available index has moved, all in all.
    offered: u64,
    used: u64,
}

/// Lets a cheat loose: used-ring entries are for heads that were available, and no more of them than were.
pub fn run_cheat(driver: &mut Driver, attack: &Attack) {
    run(driver, attack, Kind::Cheat);
}

/// Lets a vandal loose: nothing panics, and the device always comes to rest.
pub fn run_vandal(driver: &mut Driver, attack: &Attack) {
    run(driver, attack, Kind::Vandal);
}

fn run(driver: &mut Driver, attack: &Attack, kind: Kind) {
    let begin = |driver: &mut Driver| {
        driver.set_up(attack.features);
        let heads = BTreeSet::from([0]);
        vec![Account { heads, ..Account::default() }; driver.rings.len()]
    };
    let mut accounts = begin(driver);
    for act in &attack.acts {
        apply(driver, act, &mut accounts);
        settle(driver, kind, &mut accounts);
        // A device that has given up serves no driver, and is no target any more. A vandal may leave it so.
        if kind == Kind::Cheat && driver.mmio.interrupt().needs_reset() {
            for queue in 0..driver.rings.len() {
                driver.add(queue, &[readable(DATA, 16), writable(DATA + 0x100, 16)]);
                driver.kick(queue);
                assert_eq!(
                    driver.used(queue),
                    [],
                    "queue {queue} is served although the device needs a reset"
                );
            }
            accounts = begin(driver);
        }
    }
}

fn apply(driver: &mut Driver, act: &Act, accounts: &mut [Account]) {
    match *act {
        Act::Describe { queue, index, descriptor, next } => {
            let rings = &driver.rings[queue];
            driver.put_descriptor(rings.table(), index % rings.size, descriptor, next);
        }
        Act::DescribeIndirect { queue, index, descriptor, next } => {
            driver.put_descriptor(driver.rings[queue].indirect(), index, descriptor, next);
        }
        Act::Submit { queue, ref chain } => {
            let head = driver.add(queue, chain);
            accounts[queue].heads.insert(head.into());
            accounts[queue].offered += 1;
            driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32);
        }
        Act::Offer { queue, ref heads, jump } => {
            for &head in heads {
                driver.offer(queue, head);
                accounts[queue].heads.insert(head.into());
            }
            let available = driver.rings[queue].available.wrapping_add(jump);
            driver.put(driver.rings[queue].driver() + 2, &available.to_le_bytes());
            driver.rings[queue].available = available;
            accounts[queue].offered += heads.len() as u64 + u64::from(jump);
            driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32);
        }
        Act::Fill { at, ref bytes } | Act::Scribble { at, ref bytes } => driver.put(at, bytes),
        Act::Kick { queue } => driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, queue),
        Act::Source => driver.worker.source_ready(),
        Act::Read { offset, size } => driver.mmio.read(offset, &mut [0u8; 8][..size]),
        Act::Configure { offset, size, value } => {
            driver.mmio.write(offset.saturating_add(0x100), &value.to_le_bytes()[..size]);
        }
        Act::Register { offset, size, value } => driver.mmio.write(offset, &value.to_le_bytes()[..size]),
    }
}

/// Lets the device work, turn by turn, and looks at what it did in each.
fn settle(driver: &mut Driver, kind: Kind, accounts: &mut [Account]) {
    for turn in 0.. {
        assert!(turn < 1000, "the device never comes to rest");
        let worked = driver.worker.turn();
        if kind == Kind::Cheat {
            for (queue, account) in accounts.iter_mut().enumerate() {
                let before = account.used;
                for (head, _) in driver.used(queue) {
                    assert!(account.heads.contains(&head), "queue {queue}: {head} was never available");
                    account.used += 1;
                }
                assert!(account.used <= account.offered, "queue {queue}: used more than was available");
                // Its own turn, and one each in the wake of others.
                let most = u64::from(driver.rings[queue].size) * 8;
                assert!(account.used - before <= most, "queue {queue}: used too much in one turn");
            }
        }
        if !worked {
            break;
        }
    }
}
