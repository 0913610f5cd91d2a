//! The 16550 serial port, COM1: the guest's console.
//!
//! ```text
//!   guest ── THR ──> Uart ──> Output ── on a newline, a full buffer, the end of a burst or 10 ms ──> Sink
//!   guest <─ RBR ─── Uart <── what the FIFO can take ── SerialInput (device thread) <── stdin
//!                      └── empty again: `room` ──────────────^
//! ```

mod input;
mod output;
#[cfg(test)]
mod tests;

use program::output::Sink;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::bus::BusDevice;
use super::{new_event, signal};

pub use input::SerialInput;
pub use output::Output;

const INTERRUPT_ENABLE: u64 = 1;
const MODEM_CONTROL: u64 = 4;

/// The port's interrupt: an irqfd.
struct Irq(EventFd);

impl Trigger for Irq {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        signal(&self.0);
        Ok(())
    }
}

/// Tells the input that the guest has read, if it waits for that.
#[derive(Debug)]
struct Room {
    wanted: AtomicBool,
    event: EventFd,
}

impl Room {
    fn offer(&self) {
        if self.wanted.swap(false, Ordering::Relaxed) {
            signal(&self.event);
        }
    }
}

struct Events(Arc<Room>);

impl SerialEvents for Events {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        self.0.offer();
    }
}

/// The serial port as a device on the bus.
pub struct SerialPort {
    uart: Serial<Irq, Events, Output>,
    room: Arc<Room>,
}

impl SerialPort {
    /// A port that raises `irq` and prints to `sink`.
    pub fn new(irq: EventFd, sink: Box<dyn Sink>) -> io::Result<Self> {
        let room = Arc::new(Room { wanted: AtomicBool::new(false), event: new_event()? });
        let uart = Serial::with_events(Irq(irq), Events(room.clone()), Output::new(sink)?);
        Ok(Self { uart, room })
    }

    /// The interrupt, to be registered as an irqfd.
    pub fn irq(&self) -> &EventFd {
        &self.uart.interrupt_evt().0
    }

    /// Where the guest's output goes.
    pub fn output(&self) -> &Output {
        self.uart.writer()
    }

    /// Where the guest's output goes.
    pub fn output_mut(&mut self) -> &mut Output {
        self.uart.writer_mut()
    }

    /// Offers input to the guest and returns how much of it the FIFO took. If that is less than all, the input is told
    /// when to try again.
    fn offer(&mut self, input: &[u8]) -> usize {
        // A full FIFO is the only error there can be.
        let taken = self.uart.enqueue_raw_bytes(input).unwrap_or(0);
        self.room.wanted.store(taken < input.len(), Ordering::Relaxed);
        taken
    }
}

impl BusDevice for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (register, byte) in (offset..).zip(data) {
            *byte = self.uart.read(register as u8);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (register, &byte) in (offset..).zip(data) {
            // Neither the output nor the interrupt has errors.
            let _ = self.uart.write(register as u8, byte);
            match register {
                // Linux ends every burst of output, console or tty, with a write of this register.
                INTERRUPT_ENABLE => self.output_mut().drain(),
                // The end of loopback mode, during which no input is taken.
                MODEM_CONTROL => self.room.offer(),
                _ => {}
            }
        }
    }
}

impl std::fmt::Debug for SerialPort {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("SerialPort").field("output", self.output()).finish_non_exhaustive()
    }
}
