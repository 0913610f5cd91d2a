//! virtio-console with one port, over which the agent in the guest speaks to the host.
//!
//! ```text
//!   host side of the UnixStream pair                        guest: /dev/virtio-ports/org.zapscope.agent
//!   ────────────────────────────────                        ──────────────────────────────────────────
//!   bytes ──> socket ── read while there are buffers ──> receiveq of port 1
//!   bytes <── socket <── written while it takes any ─── transmitq of port 1
//!                        control receiveq <── PORT_ADD, PORT_NAME, PORT_OPEN ── Control
//!                        control transmitq ── DEVICE_READY, PORT_READY, PORT_OPEN ──> Control
//! ```
//!
//! No data is lost and no thread spins: what the guest has no buffers for stays in the socket, what the socket does not
//! take stays in the queue. The socket is watched edge-triggered, so that a side that was refused is told once when it
//! can go on. Data goes to the guest only while a program there has the port open: Linux throws away what comes before.
//!
//! Port 0 exists as a pair of queues, because the specification counts from there, and is never added: for a driver
//! without MULTIPORT it would be a console, and what a driver sends there is dropped.

mod control;
#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use vm_memory::{GuestMemoryBackend, ReadVolatile, VolatileMemoryError, WriteVolatile};

use super::queue::{Chain, Outcome, QueueError, pieces, total_len};
use super::{Running, VirtioDevice, copy_config};
use control::Control;
pub use control::PORT_NAME;

use guest::GuestRam;

const F_MULTIPORT: u32 = 1;
/// Ports 0 and 1.
const PORTS: u32 = 2;

const PORT0_TRANSMIT: usize = 1;
const CONTROL_RECEIVE: usize = 2;
const CONTROL_TRANSMIT: usize = 3;
const RECEIVE: usize = 4;
const TRANSMIT: usize = 5;

/// How much of a buffer is moved in one turn.
const PART: u64 = 64 << 10;

/// A virtio console device with its end of the socket pair.
#[derive(Debug)]
pub struct Console {
    socket: UnixStream,
    control: Control,
    /// The host has closed its end: what the guest sends goes nowhere.
    hung_up: bool,
    /// How much of the first available transmit chain is in the socket already.
    sent: u64,
}

/// What became of one transfer between guest memory and the socket.
#[derive(Debug, PartialEq, Eq)]
enum Transfer {
    /// All of it.
    Whole,
    /// So many bytes, and the socket neither has nor takes more now.
    Blocked(u64),
    /// So many bytes, and the host has closed its end.
    HungUp(u64),
    /// The buffer lies outside of RAM.
    OutsideRam,
}

impl Console {
    /// A console whose port is the other end of `socket`.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket, control: Control::default(), hung_up: false, sent: 0 })
    }

    /// The guest's output.
    fn transmit(&mut self, memory: &GuestRam, chain: &Chain<'_>) -> Result<Outcome, &'static str> {
        let len = total_len(chain.readable);
        // What the driver sees as one buffer may have shrunk since the last turn.
        let done = self.sent.min(len);
        let part = (len - done).min(PART);
        let mut socket = &self.socket;
        let transfer = match self.hung_up {
            true => Transfer::HungUp(0),
            false => transfer(memory, chain.readable, done, part, &mut |slice| socket.write_volatile(slice)),
        };
        self.sent = 0;
        match transfer {
            Transfer::Whole if done + part < len => {
                self.sent = done + part;
                Ok(Outcome::Again)
            }
            Transfer::Whole => Ok(Outcome::Used(0)),
            Transfer::Blocked(more) => {
                self.sent = done + more;
                Ok(Outcome::Later)
            }
            Transfer::HungUp(_) => {
                self.hang_up();
                Ok(Outcome::Used(0))
            }
            Transfer::OutsideRam => Err("sends what lies outside of RAM"),
        }
    }

    /// The guest's input.
    fn receive(&mut self, memory: &GuestRam, chain: &Chain<'_>) -> Result<Outcome, &'static str> {
        if self.hung_up || !self.control.guest_is_open() {
            return Ok(Outcome::Later);
        }
        let room = total_len(chain.writable).min(PART);
        let mut socket = &self.socket;
        match transfer(memory, chain.writable, 0, room, &mut |slice| socket.read_volatile(slice)) {
            Transfer::Whole => Ok(Outcome::Used(room as u32)),
            Transfer::Blocked(0) => Ok(Outcome::Later),
            Transfer::Blocked(got) => Ok(Outcome::Used(got as u32)),
            Transfer::HungUp(got) => {
                self.hang_up();
                Ok(if got > 0 { Outcome::Used(got as u32) } else { Outcome::Later })
            }
            Transfer::OutsideRam => Err("receives to outside of RAM"),
        }
    }

    fn hang_up(&mut self) {
        if !self.hung_up {
            self.hung_up = true;
            self.control.host_closed();
        }
    }

    fn serve_queue(&mut self, queue: usize, running: &mut Running) -> Result<(), QueueError> {
        running.serve(queue, &mut |memory, chain| {
            let outcome = match queue {
                PORT0_TRANSMIT => Ok(Outcome::Used(0)),
                CONTROL_TRANSMIT => Ok(self.control.received(memory, chain)),
                CONTROL_RECEIVE => Ok(self.control.send(memory, chain)),
                RECEIVE => self.receive(memory, chain),
                TRANSMIT => self.transmit(memory, chain),
                // The receive queue of port 0: nothing ever comes.
                _ => Ok(Outcome::Later),
            };
            outcome.map_err(|what| QueueError::Chain { queue, head: chain.head, what })
        })
    }

    /// Serves the queues that another one's turn has given something to do, each for one turn.
    fn follow_up(&mut self, running: &mut Running) -> Result<(), QueueError> {
        if self.control.guest_has_opened() {
            self.serve_queue(RECEIVE, running)?;
        }
        if self.control.has_messages() {
            self.serve_queue(CONTROL_RECEIVE, running)?;
        }
        Ok(())
    }
}

impl VirtioDevice for Console {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn queue_sizes(&self) -> &'static [u16] {
        // Linux fills a receive queue with a page for each descriptor.
        &[16; 6]
    }

    fn features(&self) -> u64 {
        1 << F_MULTIPORT
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // cols, rows (not offered), max_nr_ports, emerg_wr (not offered)
        let mut space = [0u8; 12];
        space[4..8].copy_from_slice(&PORTS.to_le_bytes());
        copy_config(&space, offset, data);
    }

    /// Nothing in it is the driver's.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self) {
        self.control = Control::default();
        if self.hung_up {
            self.control.host_closed();
        }
    }

    fn reset(&mut self) {
        self.control = Control::default();
        self.sent = 0;
    }

    fn serve(&mut self, queue: usize, running: &mut Running) -> Result<(), QueueError> {
        self.serve_queue(queue, running)?;
        self.follow_up(running)
    }

    fn source(&self) -> Option<RawFd> {
        Some(self.socket.as_raw_fd())
    }

    fn source_ready(&mut self, running: Option<&mut Running>) -> Result<(), QueueError> {
        let Some(running) = running else { return Ok(()) };
        self.serve_queue(RECEIVE, running)?;
        self.serve_queue(TRANSMIT, running)?;
        self.follow_up(running)
    }
}

fn is(error: &VolatileMemoryError, kind: ErrorKind) -> bool {
    matches!(error, VolatileMemoryError::IOError(error) if error.kind() == kind)
}

type Slice<'a> = vm_memory::VolatileSlice<'a, ()>;

/// Moves bytes `[from, from + len)` of some buffers, as far as it goes. `step` is one system call.
fn transfer(
    memory: &GuestRam,
    buffers: &[super::queue::Buffer],
    from: u64,
    len: u64,
    step: &mut dyn FnMut(&mut Slice<'_>) -> Result<usize, VolatileMemoryError>,
) -> Transfer {
    let mut done = 0;
    for (address, len) in pieces(buffers, from, len) {
        for slice in memory.get_slices(address, len) {
            let Ok(mut rest) = slice else { return Transfer::OutsideRam };
            while !rest.is_empty() {
                match step(&mut rest) {
                    Ok(0) => return Transfer::HungUp(done),
                    Ok(moved) => {
                        done += moved as u64;
                        match rest.offset(moved) {
                            Ok(next) => rest = next,
                            Err(_) => return Transfer::OutsideRam,
                        }
                    }
                    Err(error) if is(&error, ErrorKind::Interrupted) => {}
                    Err(error) if is(&error, ErrorKind::WouldBlock) => return Transfer::Blocked(done),
                    // EPIPE, ECONNRESET: there is no other end.
                    Err(_) => return Transfer::HungUp(done),
                }
            }
        }
    }
    Transfer::Whole
}
