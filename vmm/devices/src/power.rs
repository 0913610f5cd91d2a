//! The power switch of a machine: what pressed it, and the thread that it wakes.
//!
//! ```text
//!   outb(0x600, S5 | SLP_EN)  AcpiPower ── Off ───┐
//!   outb(0x602, 1)            AcpiPower ── Reset ─┼─> PowerSwitch ── eventfd ──> the main thread
//!   outb(0x64, 0xfe)          I8042 ────── Reset ─┤
//!   Ctrl-A x                  SerialInput ─ Quit ─┘
//! ```

use std::io;
use std::sync::{Arc, OnceLock};

use vmm_sys_util::eventfd::EventFd;

use super::{new_event, signal};

/// Why the machine is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// The guest switched itself off.
    Off,
    /// The guest asked for a reset.
    Reset,
    /// The person at the terminal has had enough.
    Quit,
}

/// Where the end of the machine is noted. The first event counts.
#[derive(Debug)]
pub struct PowerSwitch {
    happened: OnceLock<PowerEvent>,
    wake: EventFd,
}

impl PowerSwitch {
    /// A switch that has not been pressed.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { happened: OnceLock::new(), wake: new_event()? }))
    }

    /// Ends the machine, unless something has already.
    pub fn press(&self, event: PowerEvent) {
        let _ = self.happened.set(event);
        signal(&self.wake);
    }

    /// What ended the machine.
    pub fn happened(&self) -> Option<PowerEvent> {
        self.happened.get().copied()
    }

    /// Readable once something has.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_event_counts() {
        let switch = PowerSwitch::new().unwrap();
        switch.press(PowerEvent::Quit);
        switch.press(PowerEvent::Off);
        assert_eq!(switch.happened(), Some(PowerEvent::Quit));
    }
}
