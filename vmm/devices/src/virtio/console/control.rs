//! The conversation on the control queues.
//!
//! ```text
//!   driver: DEVICE_READY ──> device: PORT_ADD ──> driver: PORT_READY ──> device: PORT_NAME, PORT_OPEN
//!   driver: PORT_OPEN when a program opens or closes the port; device: PORT_OPEN 0 when the host has closed its end
//! ```

use crate::virtio::queue::{Chain, Outcome, copy_from, copy_to, total_len};
use guest::GuestRam;

/// The name of the port, by which udev and the agent find it.
pub const PORT_NAME: &str = "org.zapscope.agent";

/// The one port.
const PORT: u32 = 1;

const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const PORT_NAMED: u16 = 7;

/// Bytes of a message: port, event, value.
const MESSAGE: usize = 8;

/// What the device has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Add,
    Name,
    /// Whether the host's end is open.
    Open,
}

/// What each side has said about the port.
#[derive(Debug, Default)]
pub(super) struct Control {
    /// In the order of saying, none twice: however often a driver asks, it stays this short.
    pending: Vec<Message>,
    port_ready: bool,
    host_closed: bool,
    guest_open: bool,
    just_opened: bool,
}

impl Control {
    /// Whether a program in the guest has the port open.
    pub(super) const fn guest_is_open(&self) -> bool {
        self.guest_open
    }

    /// Whether one has opened it since this was last asked.
    pub(super) fn guest_has_opened(&mut self) -> bool {
        std::mem::take(&mut self.just_opened)
    }

    /// Whether anything waits to be said.
    pub(super) fn has_messages(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The host has closed its end.
    pub(super) fn host_closed(&mut self) {
        self.host_closed = true;
        if self.port_ready {
            self.say(Message::Open);
        }
    }

    fn say(&mut self, message: Message) {
        if !self.pending.contains(&message) {
            self.pending.push(message);
        }
    }

    /// The driver says something.
    pub(super) fn received(&mut self, memory: &GuestRam, chain: &Chain<'_>) -> Outcome {
        let mut message = [0u8; MESSAGE];
        if copy_from(memory, chain.readable, 0, &mut message).is_some() {
            let [a, b, c, d, event_low, event_high, value_low, value_high] = message;
            let value = u16::from_le_bytes([value_low, value_high]);
            match (u16::from_le_bytes([event_low, event_high]), u32::from_le_bytes([a, b, c, d])) {
                (DEVICE_READY, _) if value == 1 => self.say(Message::Add),
                (PORT_READY, PORT) if value == 1 => {
                    self.port_ready = true;
                    self.say(Message::Name);
                    self.say(Message::Open);
                }
                (PORT_OPEN, PORT) => {
                    self.guest_open = value == 1;
                    self.just_opened |= self.guest_open;
                }
                _ => {}
            }
        }
        Outcome::Used(0)
    }

    /// Says the next thing in a buffer of the driver's. One that is too small, or outside of RAM, is given back empty.
    pub(super) fn send(&mut self, memory: &GuestRam, chain: &Chain<'_>) -> Outcome {
        let Some(&message) = self.pending.first() else { return Outcome::Later };
        let (event, value) = match message {
            Message::Add => (PORT_ADD, 1u16),
            Message::Name => (PORT_NAMED, 1),
            Message::Open => (PORT_OPEN, (!self.host_closed).into()),
        };
        let name = if message == Message::Name { PORT_NAME } else { "" };
        let parts: [&[u8]; 4] =
            [&PORT.to_le_bytes(), &event.to_le_bytes(), &value.to_le_bytes(), name.as_bytes()];
        let bytes = parts.concat();
        if total_len(chain.writable) < bytes.len() as u64
            || copy_to(memory, chain.writable, 0, &bytes).is_none()
        {
            return Outcome::Used(0);
        }
        self.pending.remove(0);
        Outcome::Used(bytes.len() as u32)
    }
}
