//! What is typed, or comes out of a pipe, on its way to the guest.
//!
//! A pipe is read only as fast as the guest reads: nothing is lost. A terminal is always read, because Ctrl-A x must
//! work in front of a guest that hangs; what is typed beyond [`TYPED_AHEAD`] is lost.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use event_manager::{EventOps, EventSet, Events};
use rustix::io::Errno;

use super::SerialPort;
use crate::loop_thread::Served;
use crate::power::{PowerEvent, PowerSwitch};
use crate::terminal::{Escape, Escapes, HELP};
use crate::{lock, take_signal};

/// How much of a terminal's input waits for the guest at most.
const TYPED_AHEAD: usize = 4096;
/// How much one read takes.
const READ: usize = 256;

/// Whether and how the source is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// The event loop says when it can be read.
    Watched,
    /// It could be read, but the guest has not read what came before.
    Paused,
    /// It cannot be waited for, and never blocks: a regular file, `/dev/null`.
    Ready,
    /// It has ended. The guest gets no more input.
    Ended,
}

/// Reads a descriptor and offers what it finds to the serial port.
#[derive(Debug)]
pub struct SerialInput {
    port: Arc<Mutex<SerialPort>>,
    fd: OwnedFd,
    source: Source,
    /// Read, and not yet taken by the guest.
    pending: Vec<u8>,
    /// Present where a person types.
    escapes: Option<(Escapes, Arc<PowerSwitch>)>,
}

impl SerialInput {
    /// Input from a pipe or a file: every byte of it goes to the guest.
    pub fn from_pipe(port: Arc<Mutex<SerialPort>>, fd: OwnedFd) -> Self {
        Self { port, fd, source: Source::Watched, pending: Vec::new(), escapes: None }
    }

    /// Input from a terminal, where Ctrl-A speaks to the VMM.
    pub fn from_terminal(port: Arc<Mutex<SerialPort>>, fd: OwnedFd, switch: Arc<PowerSwitch>) -> Self {
        Self { escapes: Some((Escapes::default(), switch)), ..Self::from_pipe(port, fd) }
    }

    /// Whether more may be read now.
    fn has_room(&self) -> bool {
        self.pending.is_empty() || self.escapes.is_some()
    }

    /// Reads once.
    fn read(&mut self) -> Source {
        let mut bytes = [0u8; READ];
        match rustix::io::read(&self.fd, &mut bytes) {
            Ok(0) => Source::Ended,
            Ok(length) => {
                self.take(&bytes[..length]);
                self.source
            }
            Err(Errno::INTR | Errno::AGAIN) => self.source,
            // EIO: the terminal is gone.
            Err(_) => Source::Ended,
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let Some((escapes, switch)) = &mut self.escapes else {
            self.pending.extend_from_slice(bytes);
            return;
        };
        for escape in escapes.feed(bytes, &mut self.pending) {
            match escape {
                Escape::Quit => switch.press(PowerEvent::Quit),
                Escape::Help => {
                    lock(&self.port).output_mut().put(HELP.as_bytes());
                }
            }
        }
        self.pending.truncate(TYPED_AHEAD);
    }

    fn offer(&mut self) {
        if !self.pending.is_empty() {
            let taken = lock(&self.port).offer(&self.pending);
            self.pending.drain(..taken);
        }
    }

    /// Moves what can be moved, then waits for what is missing: the source, or the guest.
    fn advance(&mut self, readable: bool, ops: &mut EventOps<'_>) -> Result<(), event_manager::Error> {
        self.offer();
        let mut next = if readable && self.has_room() { self.read() } else { self.source };
        self.offer();
        // Ends when the FIFO is full, at the latest.
        while next == Source::Ready && self.has_room() {
            next = self.read();
            self.offer();
        }
        next = match next {
            Source::Watched if !self.has_room() => Source::Paused,
            Source::Paused if self.has_room() => Source::Watched,
            other => other,
        };
        let before = std::mem::replace(&mut self.source, next);
        // A paused source leaves the event loop altogether: epoll reports a pipe's hang-up also where no event is asked for.
        match (before == Source::Watched, next == Source::Watched) {
            (true, false) => ops.remove(Events::empty(&self.fd)),
            (false, true) => ops.add(Events::new(&self.fd, EventSet::IN)),
            _ => Ok(()),
        }
    }
}

impl Served for SerialInput {
    fn name(&self) -> &'static str {
        "the serial port's input"
    }

    fn init(&mut self, ops: &mut EventOps<'_>) -> Result<(), event_manager::Error> {
        {
            let port = lock(&self.port);
            ops.add(Events::new(&port.room.event, EventSet::IN))?;
            ops.add(Events::new_raw(port.output().timer(), EventSet::IN))?;
        }
        match ops.add(Events::new(&self.fd, EventSet::IN)) {
            // EPERM: a file that cannot be polled.
            Err(event_manager::Error::Epoll(errno)) if io::Error::from(errno).kind() == CANNOT_POLL => {
                self.source = Source::Ready;
                self.advance(true, ops)
            }
            other => other,
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) -> Result<(), event_manager::Error> {
        let readable = events.fd() == self.fd.as_raw_fd();
        if !readable {
            let mut port = lock(&self.port);
            if events.fd() == port.output().timer() {
                port.output_mut().timer_expired();
                return Ok(());
            }
            take_signal(&port.room.event);
        }
        self.advance(readable, ops)
    }
}

const CANNOT_POLL: io::ErrorKind = io::ErrorKind::PermissionDenied;
