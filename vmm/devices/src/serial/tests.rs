//! The serial port, register by register, and on a real event loop with pipes.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Mutex;

use event_manager::{EventManager, EventOps, MutEventSubscriber, SubscriberOps};
use proptest::prelude::*;
use rustix::pipe::{PipeFlags, pipe_with};

use super::*;
use crate::loop_thread::{DeviceLoop, Served};
use crate::power::{PowerEvent, PowerSwitch};
use crate::{lock, take_signal, wait};

const DATA: u64 = 0;
const IIR: u64 = 2;
const LINE_STATUS: u64 = 5;
const DATA_READY: u8 = 1;

/// A sink that remembers what it took.
#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Shown>>);

#[derive(Default)]
struct Shown {
    taken: Vec<u8>,
    times: usize,
    /// Told of each time.
    told: Option<EventFd>,
}

impl Screen {
    fn taken(&self) -> Vec<u8> {
        lock(&self.0).taken.clone()
    }
    fn times(&self) -> usize {
        lock(&self.0).times
    }
}

impl Sink for Screen {
    fn take(&mut self, bytes: &[u8]) {
        let mut shown = lock(&self.0);
        shown.times += 1;
        shown.taken.extend_from_slice(bytes);
        shown.told.iter().for_each(signal);
    }
}

fn port() -> (SerialPort, Screen) {
    let sink = Screen::default();
    (SerialPort::new(new_event().unwrap(), Box::new(sink.clone())).unwrap(), sink)
}

fn say(port: &mut SerialPort, text: &[u8]) {
    text.iter().for_each(|&byte| port.write(DATA, &[byte]));
}

fn register(port: &mut SerialPort, offset: u64) -> u8 {
    let mut byte = [0];
    port.read(offset, &mut byte);
    byte[0]
}

/// As a guest's interrupt handler: everything there is.
fn hear(port: &mut SerialPort) -> Vec<u8> {
    let mut heard = Vec::new();
    while register(port, LINE_STATUS) & DATA_READY != 0 {
        heard.push(register(port, DATA));
    }
    heard
}

#[test]
fn a_line_is_one_write_and_a_full_buffer_does_not_wait() {
    let (mut port, sink) = port();
    say(&mut port, b"a line");
    assert_eq!(sink.times(), 0);
    say(&mut port, b"\n");
    assert_eq!((sink.taken(), sink.times()), (b"a line\n".to_vec(), 1));
    say(&mut port, &[b'x'; 1024]);
    assert_eq!((sink.taken().len(), sink.times()), (7 + 1024, 2));
}

#[test]
fn the_end_of_a_burst_shows_what_there_is_of_a_line() {
    let (mut port, sink) = port();
    say(&mut port, b"login: ");
    port.write(INTERRUPT_ENABLE, &[0]);
    assert_eq!(sink.taken(), b"login: ");
}

#[test]
fn the_part_of_a_line_does_not_wait_for_ever() {
    let (mut port, sink) = port();
    say(&mut port, b"> ");
    assert_eq!(sink.times(), 0);
    wait(&port.output().timer());
    port.output_mut().timer_expired();
    assert_eq!(sink.taken(), b"> ");
}

#[test]
fn what_is_held_is_written_when_the_port_goes() {
    let (mut port, sink) = port();
    say(&mut port, b"last words");
    drop(port);
    assert_eq!(sink.taken(), b"last words");
}

#[test]
fn input_raises_the_interrupt_and_more_than_the_fifo_holds_waits() {
    let (mut port, _) = port();
    port.write(INTERRUPT_ENABLE, &[1]);
    let taken = port.offer(&[b'k'; 100]);
    assert!((16..100).contains(&taken));
    assert!(take_signal(port.irq()));
    assert_eq!(register(&mut port, IIR) & 0x0f, 0x04, "received data");
    assert!(!take_signal(&port.room.event));
    assert_eq!(hear(&mut port).len(), taken);
    assert!(take_signal(&port.room.event), "the rest may come now");
    // Without a waiter no event is signalled.
    port.offer(b"x");
    hear(&mut port);
    assert!(!take_signal(&port.room.event));
}

#[test]
fn input_that_comes_in_loopback_mode_is_offered_again_after_it() {
    let (mut port, _) = port();
    port.write(MODEM_CONTROL, &[0x10]);
    assert_eq!(port.offer(b"typed"), 0);
    port.write(MODEM_CONTROL, &[0x08]);
    assert!(take_signal(&port.room.event));
    assert_eq!(port.offer(b"typed"), 5);
}

proptest! {
    /// Any access of any width in any order: no panic, and afterwards the port still carries bytes.
    #[test]
    fn a_vandal_breaks_nothing(
        accesses in prop::collection::vec((any::<bool>(), prop_oneof![0u64..8, any::<u64>().prop_map(|at| at & !7)], 1usize..9, any::<u64>(), 0usize..80), 1..80),
    ) {
        let (mut port, sink) = port();
        for (write, offset, size, value, input) in accesses {
            if write {
                port.write(offset, &value.to_le_bytes()[..size]);
            } else {
                port.read(offset, &mut [0; 8][..size]);
            }
            port.offer(&vec![b'i'; input]);
        }
        // 8 data bits, no divisor latch, no loopback; then all that came before.
        port.write(3, &[3]);
        port.write(MODEM_CONTROL, &[0x0b]);
        hear(&mut port);
        let before = sink.taken().len();
        say(&mut port, b"\nok\n");
        prop_assert!(sink.taken()[before..].ends_with(b"\nok\n"));
        prop_assert_eq!(port.offer(b"in"), 2);
        prop_assert_eq!(hear(&mut port), b"in");
    }
}

/// A port whose input is a pipe, on a device thread.
struct Bench {
    port: Arc<Mutex<SerialPort>>,
    sink: Screen,
    input: Option<OwnedFd>,
    running: DeviceLoop,
}

fn bench(escapes: Option<Arc<PowerSwitch>>) -> Bench {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let (port, sink) = port();
    let port = Arc::new(Mutex::new(port));
    lock(&port).write(INTERRUPT_ENABLE, &[1]);
    let served = match escapes {
        Some(switch) => SerialInput::from_terminal(port.clone(), read, switch),
        None => SerialInput::from_pipe(port.clone(), read),
    };
    let running = DeviceLoop::start(vec![Box::new(served)]).unwrap();
    Bench { port, sink, input: Some(write), running }
}

impl Bench {
    fn typed(&self, bytes: &[u8]) {
        rustix::io::write(self.input.as_ref().unwrap(), bytes).unwrap();
    }

    /// As a guest: waits for interrupts and reads, until so many bytes have come.
    fn hear(&self, len: usize) -> Vec<u8> {
        let irq = lock(&self.port).irq().try_clone().unwrap();
        let mut heard = Vec::new();
        while heard.len() < len {
            wait(&irq);
            take_signal(&irq);
            register(&mut lock(&self.port), IIR);
            heard.extend(hear(&mut lock(&self.port)));
        }
        heard
    }
}

#[test]
fn a_pipe_arrives_whole_and_its_end_is_quiet() {
    let mut bench = bench(None);
    let sent: Vec<u8> = (0..40_000u32).map(|at| (at % 255) as u8).collect();
    let writer = bench.input.take().unwrap();
    let bytes = sent.clone();
    // The pipe is full long before: it is read as fast as the guest reads. Then it is closed.
    let typist = std::thread::spawn(move || std::fs::File::from(writer).write_all(&bytes).unwrap());
    assert!(bench.hear(sent.len()) == sent);
    typist.join().unwrap();
    // After its end the loop still serves the output.
    let written = new_event().unwrap();
    lock(&bench.sink.0).told = Some(written.try_clone().unwrap());
    say(&mut lock(&bench.port), b"part of a line");
    wait(&written);
    bench.running.end().unwrap();
    assert_eq!(bench.sink.taken(), b"part of a line");
}

/// Joins an input to an event manager of the test's own.
struct Alone(SerialInput);

impl MutEventSubscriber for Alone {
    fn process(&mut self, events: event_manager::Events, ops: &mut EventOps<'_>) {
        Served::process(&mut self.0, events, ops).unwrap();
    }
    fn init(&mut self, ops: &mut EventOps<'_>) {
        Served::init(&mut self.0, ops).unwrap();
    }
}

/// Whether the loop has nothing more to do: it would wait, not spin.
fn rests(manager: &mut EventManager<Alone>) -> bool {
    (0..10).any(|_| manager.run_with_timeout(0).unwrap() == 0)
}

#[test]
fn the_loop_rests_after_the_end_of_input_and_while_the_guest_does_not_read() {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let (port, _) = port();
    let port = Arc::new(Mutex::new(port));
    let mut manager = EventManager::new().unwrap();
    manager.add_subscriber(Alone(SerialInput::from_pipe(port.clone(), read)));
    rustix::io::write(&write, &[b'k'; 1000]).unwrap();
    assert!(rests(&mut manager), "the FIFO is full");
    // A hang-up is reported even to those who want no events.
    drop(write);
    assert!(rests(&mut manager), "the FIFO is full and the pipe is closed");
    let mut heard = Vec::new();
    while heard.len() < 1000 {
        heard.extend(hear(&mut lock(&port)));
        manager.run_with_timeout(0).unwrap();
    }
    assert!(rests(&mut manager), "the end has been read");
    for path in ["/dev/null", "/dev/zero"] {
        let file = std::fs::File::open(path).unwrap();
        manager
            .add_subscriber(Alone(SerialInput::from_pipe(Arc::new(Mutex::new(self::port().0)), file.into())));
        assert!(rests(&mut manager), "{path}");
    }
}

#[test]
fn ctrl_a_x_quits_in_front_of_a_guest_that_never_reads() {
    let switch = PowerSwitch::new().unwrap();
    let bench = bench(Some(switch.clone()));
    bench.typed(b"\x01h");
    for _ in 0..40 {
        bench.typed(&[b'k'; 256]);
    }
    bench.typed(b"\x01x");
    wait(switch.wake());
    assert_eq!(switch.happened(), Some(PowerEvent::Quit));
    bench.running.end().unwrap();
    assert!(bench.sink.taken().starts_with(b"\r\n"), "the help");
}

#[test]
fn files_that_cannot_be_polled_are_input_too() {
    let mut file = tempfile::tempfile().unwrap();
    let text: Vec<u8> = (0..1000u32).map(|at| (at % 251) as u8).collect();
    file.write_all(&text).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    let (port, _) = port();
    let port = Arc::new(Mutex::new(port));
    lock(&port).write(INTERRUPT_ENABLE, &[1]);
    let input = SerialInput::from_pipe(port.clone(), file.into());
    let running = DeviceLoop::start(vec![Box::new(input)]).unwrap();
    let bench = Bench { port, sink: Screen::default(), input: None, running };
    assert!(bench.hear(text.len()) == text);
    bench.running.end().unwrap();
}

#[test]
fn dev_null_is_no_input() {
    let (port, _) = port();
    let port = Arc::new(Mutex::new(port));
    let null = std::fs::File::open("/dev/null").unwrap();
    let running =
        DeviceLoop::start(vec![Box::new(SerialInput::from_pipe(port.clone(), null.into()))]).unwrap();
    running.end().unwrap();
    assert_eq!(hear(&mut lock(&port)), b"");
}
