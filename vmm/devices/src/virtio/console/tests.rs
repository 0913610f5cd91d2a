//! The console, driven by an honest driver, by hostile ones, and on a real event loop.

use std::io::{Read, Write};

use proptest::prelude::*;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;

use super::*;
use crate::loop_thread::DeviceLoop;
use crate::virtio::testing::driver::{ALL, DATA, PLAIN, interrupt};
use crate::virtio::testing::hostile::{cheat, run_cheat, run_vandal, vandal};
use crate::virtio::testing::{Driver, memory, readable, writable};
use crate::wait;

/// Where control messages, input and output lie.
const CONTROL_AT: u64 = DATA;
const INPUT_AT: u64 = DATA + 0x1_0000;
const OUTPUT_AT: u64 = DATA + 0x2_0000;
const PAGE: u32 = 4096;

/// A driver with the host's end of the socket.
fn console() -> (Driver, UnixStream) {
    let (host, socket) = UnixStream::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    let mut driver = Driver::new(Box::new(Console::new(socket).unwrap()), memory(), interrupt());
    driver.set_up(ALL);
    (driver, host)
}

fn message(port: u32, event: u16, value: u16) -> Vec<u8> {
    let [a, b, c]: [&[u8]; 3] = [&port.to_le_bytes(), &event.to_le_bytes(), &value.to_le_bytes()];
    [a, b, c].concat()
}

fn say(driver: &mut Driver, port: u32, event: u16, value: u16) {
    driver.put(CONTROL_AT, &message(port, event, value));
    driver.transact(CONTROL_TRANSMIT, &[readable(CONTROL_AT, 8)]);
}

/// Gives the device a buffer for a control message and returns what comes in it at once.
fn hear(driver: &mut Driver) -> Option<Vec<u8>> {
    driver.add(CONTROL_RECEIVE, &[writable(CONTROL_AT + 0x100, 5), writable(CONTROL_AT + 0x200, PAGE)]);
    driver.kick(CONTROL_RECEIVE);
    heard(driver)
}

fn heard(driver: &mut Driver) -> Option<Vec<u8>> {
    let [(_, len)] = driver.used(CONTROL_RECEIVE)[..] else { return None };
    let rest = (len as usize).saturating_sub(5);
    Some([driver.get(CONTROL_AT + 0x100, 5), driver.get(CONTROL_AT + 0x200, rest)].concat())
}

const DEVICE_READY: u16 = 0;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;

/// As far as a program in the guest that has the port open.
fn open(driver: &mut Driver) {
    say(driver, u32::MAX, DEVICE_READY, 1);
    assert_eq!(hear(driver).unwrap(), message(1, 1, 1), "PORT_ADD");
    say(driver, 1, PORT_READY, 1);
    let named = hear(driver).unwrap();
    assert_eq!((&named[..8], &named[8..]), (&message(1, 7, 1)[..], PORT_NAME.as_bytes()));
    assert_eq!(hear(driver).unwrap(), message(1, PORT_OPEN, 1), "the host has it open");
    say(driver, 1, PORT_OPEN, 1);
}

fn read_all(host: &mut UnixStream) -> Vec<u8> {
    let mut got = Vec::new();
    // Ends with WouldBlock.
    let _ = host.read_to_end(&mut got);
    got
}

/// Sends one byte and expects it, both ways.
fn works(driver: &mut Driver, host: &mut UnixStream) {
    read_all(host);
    driver.set_up(PLAIN);
    open(driver);
    driver.add(RECEIVE, &[writable(INPUT_AT, PAGE)]);
    driver.kick(RECEIVE);
    host.write_all(b"to the guest").unwrap();
    driver.worker.source_ready();
    let used = driver.used(RECEIVE);
    assert_eq!(driver.get(INPUT_AT, used[0].1 as usize), b"to the guest");
    driver.put(OUTPUT_AT, b"to the host");
    driver.transact(TRANSMIT, &[readable(OUTPUT_AT, 4), readable(OUTPUT_AT + 4, 7)]);
    assert_eq!(read_all(host), b"to the host");
}

#[test]
fn an_honest_driver_finds_the_port_and_speaks() {
    let (mut driver, mut host) = console();
    assert_eq!(driver.read(0x104), PORTS);
    works(&mut driver, &mut host);
    works(&mut driver, &mut host);
}

#[test]
fn messages_wait_for_buffers_and_are_not_said_twice() {
    let (mut driver, _host) = console();
    for _ in 0..100 {
        say(&mut driver, 0, DEVICE_READY, 1);
        say(&mut driver, 1, PORT_READY, 1);
    }
    assert_eq!(hear(&mut driver).unwrap(), message(1, 1, 1));
    assert_eq!(hear(&mut driver).unwrap()[..8], message(1, 7, 1));
    assert_eq!(hear(&mut driver).unwrap(), message(1, PORT_OPEN, 1));
    assert_eq!(hear(&mut driver), None);
}

#[test]
fn a_driver_that_is_not_ready_is_told_nothing() {
    let (mut driver, _host) = console();
    for (port, event, value) in
        [(u32::MAX, DEVICE_READY, 0), (1, PORT_READY, 0), (0, PORT_READY, 1), (7, 99, 1)]
    {
        say(&mut driver, port, event, value);
    }
    // Half a message.
    driver.transact(CONTROL_TRANSMIT, &[readable(CONTROL_AT, 7)]);
    assert_eq!(hear(&mut driver), None);
}

#[test]
fn a_buffer_too_small_for_a_message_comes_back_empty_and_the_message_waits() {
    let (mut driver, _host) = console();
    say(&mut driver, 0, DEVICE_READY, 1);
    assert_eq!(driver.transact(CONTROL_RECEIVE, &[writable(CONTROL_AT, 7)]), 0);
    assert_eq!(driver.transact(CONTROL_RECEIVE, &[writable(0x10_0000, PAGE)]), 0);
    assert_eq!(hear(&mut driver).unwrap(), message(1, 1, 1));
}

#[test]
fn input_waits_until_a_program_has_the_port_open() {
    let (mut driver, mut host) = console();
    host.write_all(b"early").unwrap();
    driver.add(RECEIVE, &[writable(INPUT_AT, PAGE)]);
    driver.kick(RECEIVE);
    driver.worker.source_ready();
    assert_eq!(driver.used(RECEIVE), []);
    // Opening is what sends it: the socket is ready since before and says nothing more.
    open(&mut driver);
    assert_eq!(driver.used(RECEIVE)[0].1, 5);
    assert_eq!(driver.get(INPUT_AT, 5), b"early");
    say(&mut driver, 1, PORT_OPEN, 0);
    host.write_all(b"late").unwrap();
    driver.add(RECEIVE, &[writable(INPUT_AT, PAGE)]);
    driver.kick(RECEIVE);
    driver.worker.source_ready();
    assert_eq!(driver.used(RECEIVE), []);
}

#[test]
fn input_waits_for_buffers_and_fills_them_in_order() {
    let (mut driver, mut host) = console();
    open(&mut driver);
    let sent: Vec<u8> = (0..10_000u32).map(|at| (at % 251) as u8).collect();
    host.write_all(&sent).unwrap();
    driver.worker.source_ready();
    let mut got = Vec::new();
    for _ in 0..40 {
        driver.add(RECEIVE, &[writable(INPUT_AT, 100), writable(INPUT_AT + 200, 200)]);
        driver.kick(RECEIVE);
        for (_, len) in driver.used(RECEIVE) {
            let first = len.min(100) as usize;
            got.extend(driver.get(INPUT_AT, first));
            got.extend(driver.get(INPUT_AT + 200, len as usize - first));
        }
    }
    assert_eq!(got, sent);
}

#[test]
fn output_waits_in_the_queue_while_the_socket_is_full_and_none_is_lost_or_doubled() {
    let (mut driver, mut host) = console();
    open(&mut driver);
    let (mut sent, mut got) = (Vec::new(), Vec::new());
    // Far more than a socket holds, in chains of 48 KiB.
    for round in 0..64u8 {
        let bytes: Vec<u8> = (0..0xc000u32).map(|at| (at / 256) as u8 ^ round).collect();
        driver.put(OUTPUT_AT, &bytes);
        driver.add(TRANSMIT, &[readable(OUTPUT_AT, 0x4001), readable(OUTPUT_AT + 0x4001, 0x7fff)]);
        driver.kick(TRANSMIT);
        while driver.used(TRANSMIT).is_empty() {
            let more = read_all(&mut host);
            assert!(!more.is_empty(), "the chain waits although the socket is empty");
            got.extend(more);
            driver.worker.source_ready();
            driver.run();
        }
        sent.extend(bytes);
    }
    got.extend(read_all(&mut host));
    assert!(got == sent, "{} bytes of {}", got.len(), sent.len());
}

#[test]
fn a_chain_too_long_for_one_turn_is_sent_in_several() {
    let (mut driver, mut host) = console();
    open(&mut driver);
    // Three turns' worth out of a third of that memory.
    let part = PART as u32;
    driver.put(OUTPUT_AT, &vec![b'z'; PART as usize]);
    let head = driver
        .add(TRANSMIT, &[readable(OUTPUT_AT, part), readable(OUTPUT_AT, part), readable(OUTPUT_AT, part)]);
    driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, TRANSMIT as u32);
    for _ in 0..3 {
        assert_eq!(driver.used(TRANSMIT), []);
        assert!(driver.worker.turn(), "it has told itself to go on");
        assert!(read_all(&mut host) == vec![b'z'; PART as usize]);
    }
    assert_eq!(driver.used(TRANSMIT), [(head.into(), 0)]);
}

#[test]
fn a_host_that_hangs_up_is_told_to_the_guest_whose_output_is_dropped() {
    let (mut driver, host) = console();
    open(&mut driver);
    driver.add(RECEIVE, &[writable(INPUT_AT, PAGE)]);
    driver.kick(RECEIVE);
    drop(host);
    driver.worker.source_ready();
    assert_eq!(driver.used(RECEIVE), [], "no input is not an empty input");
    assert_eq!(hear(&mut driver).unwrap(), message(1, PORT_OPEN, 0));
    assert_eq!(driver.transact(TRANSMIT, &[readable(OUTPUT_AT, 10)]), 0);
    // The next driver is told from the beginning.
    driver.set_up(ALL);
    say(&mut driver, 1, PORT_READY, 1);
    hear(&mut driver);
    assert_eq!(hear(&mut driver).unwrap(), message(1, PORT_OPEN, 0));
}

#[test]
fn output_to_a_host_that_is_gone_is_how_its_end_is_noticed() {
    let (mut driver, host) = console();
    open(&mut driver);
    drop(host);
    assert_eq!(driver.transact(TRANSMIT, &[readable(OUTPUT_AT, 10)]), 0);
    assert_eq!(hear(&mut driver).unwrap(), message(1, PORT_OPEN, 0));
}

#[test]
fn buffers_outside_of_ram_are_a_fault() {
    for (queue, chain, expected) in [
        (TRANSMIT, readable(0x10_0000, 4), "sends what lies outside of RAM"),
        (RECEIVE, writable(0x10_0000, 4), "receives to outside of RAM"),
    ] {
        let (mut driver, mut host) = console();
        open(&mut driver);
        host.write_all(b"x").unwrap();
        driver.add(queue, &[chain]);
        driver.kick(queue);
        assert!(driver.mmio.interrupt().last_fault().unwrap().ends_with(expected));
        drain_and_check(&mut driver, &mut host);
    }
}

#[test]
fn without_multiport_the_console_swallows_and_says_nothing() {
    let (mut driver, mut host) = console();
    driver.set_up(!(1 << F_MULTIPORT));
    driver.add(0, &[writable(INPUT_AT, PAGE)]);
    driver.kick(0);
    assert_eq!(driver.transact(PORT0_TRANSMIT, &[readable(OUTPUT_AT, 10)]), 0);
    assert_eq!((read_all(&mut host), driver.used(0)), (vec![], vec![]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_cheat_does_not_break_the_console(attack in cheat(6), input in prop::collection::vec(any::<u8>(), 0..5000)) {
        let (mut driver, mut host) = console();
        host.write_all(&input).unwrap();
        run_cheat(&mut driver, &attack);
        drain_and_check(&mut driver, &mut host);
    }

    #[test]
    fn a_vandal_breaks_nothing(attack in vandal(6)) {
        let (mut driver, mut host) = console();
        run_vandal(&mut driver, &attack);
        drain_and_check(&mut driver, &mut host);
    }

    /// Whatever the pieces, both directions carry the same bytes in the same order.
    #[test]
    fn bytes_arrive_in_order(steps in prop::collection::vec((0u8..4, 1u32..3000), 1..60)) {
        let (mut driver, mut host) = console();
        open(&mut driver);
        let (mut next, mut to_host, mut from_guest, mut to_guest, mut from_host) = (0u32, vec![], vec![], vec![], vec![]);
        // Buffers out with the device: at most four, each with a place of its own.
        let mut slots = std::collections::HashMap::new();
        for (what, len) in steps {
            let bytes: Vec<u8> = (0..len).map(|at| ((next + at) % 253) as u8).collect();
            next += len;
            match what {
                0 => {
                    driver.put(OUTPUT_AT, &bytes);
                    driver.transact(TRANSMIT, &[readable(OUTPUT_AT, len / 2), readable(OUTPUT_AT + u64::from(len / 2), len - len / 2)]);
                    from_guest.extend(bytes);
                }
                1 => {
                    host.write_all(&bytes).unwrap();
                    from_host.extend(bytes);
                    driver.worker.source_ready();
                }
                2 if slots.len() < 4 => {
                    let place = INPUT_AT + 0x1000 * (0..4).find(|slot| !slots.values().any(|&at| at == INPUT_AT + 0x1000 * slot)).unwrap();
                    slots.insert(u32::from(driver.add(RECEIVE, &[writable(place, len)])), place);
                    driver.kick(RECEIVE);
                }
                _ => to_host.extend(read_all(&mut host)),
            }
            for (head, len) in driver.used(RECEIVE) {
                to_guest.extend(driver.get(slots.remove(&head).unwrap(), len as usize));
            }
        }
        to_host.extend(read_all(&mut host));
        prop_assert_eq!(to_host, from_guest);
        prop_assert_eq!(&to_guest[..], &from_host[..to_guest.len()]);
        // What has not arrived waits for buffers.
        prop_assert!(to_guest.len() == from_host.len() || slots.is_empty());
    }
}

/// The attack may have left input in the socket, which is the next driver's.
fn drain_and_check(driver: &mut Driver, host: &mut UnixStream) {
    driver.set_up(ALL);
    open(driver);
    for _ in 0..10 {
        driver.add(RECEIVE, &[writable(INPUT_AT, PAGE)]);
        driver.kick(RECEIVE);
        driver.used(RECEIVE);
    }
    works(driver, host);
}

#[test]
fn on_the_device_thread_bytes_go_both_ways_by_events_alone() {
    let (mut host, socket) = UnixStream::pair().unwrap();
    let mut driver = Driver::new(Box::new(Console::new(socket).unwrap()), memory(), interrupt());
    driver.set_up(ALL);
    open(&mut driver);
    // From here the test only writes registers, and waits for interrupts, as a guest does.
    let running = DeviceLoop::start(vec![Box::new(driver.worker.clone())]).unwrap();
    driver.take_interrupt();
    driver.add(RECEIVE, &[writable(INPUT_AT, PAGE)]);
    driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, RECEIVE as u32);
    host.write_all(b"ping").unwrap();
    let used = await_used(&mut driver, RECEIVE);
    assert_eq!(driver.get(INPUT_AT, used as usize), b"ping");
    // More than the socket holds: the rest goes when the host has read.
    let bytes: Vec<u8> = (0..0xc000u32).map(|at| (at / 100) as u8).collect();
    driver.put(OUTPUT_AT, &bytes);
    for _ in 0..12 {
        driver.add(TRANSMIT, &[readable(OUTPUT_AT, 0xc000)]);
    }
    driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, TRANSMIT as u32);
    let mut got = vec![0; 12 * 0xc000];
    host.read_exact(&mut got).unwrap();
    assert!(got == bytes.repeat(12));
    running.end().unwrap();
}

fn await_used(driver: &mut Driver, queue: usize) -> u32 {
    loop {
        if let [(_, len), ..] = driver.used(queue)[..] {
            return len;
        }
        wait(driver.mmio.interrupt().irq());
        driver.take_interrupt();
    }
}
