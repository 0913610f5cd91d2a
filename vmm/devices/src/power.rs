//! How a guest ends its machine: ACPI's sleep and reset registers, and the keyboard controller's reset line.
//!
//! ```text
//!   outb(0x600, S5 | SLP_EN)  AcpiPower ── Off ───┐
//!   outb(0x602, 1)            AcpiPower ── Reset ─┼─> PowerSwitch ── eventfd ──> the main thread
//!   outb(0x64, 0xfe)          I8042 ────── Reset ─┤
//!   Ctrl-A x                  SerialInput ─ Quit ─┘
//! ```

use std::io;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use vmm_sys_util::eventfd::EventFd;

use super::bus::BusDevice;
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
    /// A switch that nobody has pressed.
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

/// The ports of [`I8042`]. 0x61 to 0x63 belong to others and answer as an empty bus does.
pub const I8042_PORTS: Range<u64> = 0x60..0x65;
/// The ports of [`AcpiPower`]: sleep control, sleep status, reset.
pub const ACPI_PORTS: Range<u64> = 0x600..0x603;
/// The value for the FADT's reset register that [`AcpiPower`] takes.
pub const ACPI_RESET_VALUE: u8 = 1;
/// SLP_TYP of the sleep state S5, soft off, for the DSDT.
pub const ACPI_S5: u8 = 5;

const DATA: u64 = 0;
const COMMAND: u64 = 4;
const PULSE_RESET: u8 = 0xfe;

/// Output buffer full, and never emptied; input buffer empty.
///
/// Linux's i8042 driver empties the output buffer before anything else, gives up after 16 bytes (a millisecond) and
/// reports no controller. Were the buffer empty, it would go on to send a command and wait half a second for the
/// answer. Its reboot waits for the input buffer to be empty, 131 ms if it never is, and then pulses the reset line.
const STATUS: u8 = 0x01;

/// So much of a keyboard controller that a guest can reset the machine by it, and finds no keyboard quickly.
#[derive(Debug)]
pub struct I8042(Arc<PowerSwitch>);

impl I8042 {
    /// A controller whose reset line is `switch`.
    pub const fn new(switch: Arc<PowerSwitch>) -> Self {
        Self(switch)
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (port, byte) in (offset..).zip(data) {
            *byte = match port {
                DATA => 0,
                COMMAND => STATUS,
                _ => 0xff,
            };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if (offset..).zip(data).any(|(port, &byte)| port == COMMAND && byte == PULSE_RESET) {
            self.0.press(PowerEvent::Reset);
        }
    }
}

const SLEEP_CONTROL: u64 = 0;
const RESET: u64 = 2;
const SLP_EN: u8 = 1 << 5;
const SLP_TYP_SHIFT: u32 = 2;
const SLP_TYP_MASK: u8 = 0b111;

/// The sleep control, sleep status and reset registers of a hardware-reduced ACPI machine.
#[derive(Debug)]
pub struct AcpiPower(Arc<PowerSwitch>);

impl AcpiPower {
    /// Registers that act on `switch`.
    pub const fn new(switch: Arc<PowerSwitch>) -> Self {
        Self(switch)
    }
}

impl BusDevice for AcpiPower {
    /// The sleep status never says that the machine has woken, since it never sleeps.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (port, &byte) in (offset..).zip(data) {
            match port {
                SLEEP_CONTROL if byte & SLP_EN != 0 && byte >> SLP_TYP_SHIFT & SLP_TYP_MASK == ACPI_S5 => {
                    self.0.press(PowerEvent::Off);
                }
                RESET if byte == ACPI_RESET_VALUE => self.0.press(PowerEvent::Reset),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::take_signal;

    #[test]
    fn only_s5_with_the_enable_bit_is_off_and_only_the_reset_value_is_reset() {
        for offset in 0..3 {
            for value in 0..=u8::MAX {
                let switch = PowerSwitch::new().unwrap();
                AcpiPower::new(switch.clone()).write(offset, &[value]);
                let expected = match (offset, value & 0b11_1100) {
                    (0, 0b11_0100) => Some(PowerEvent::Off),
                    (2, _) if value == 1 => Some(PowerEvent::Reset),
                    _ => None,
                };
                assert_eq!(switch.happened(), expected, "{value:#x} at {offset}");
                assert_eq!(take_signal(switch.wake()), expected.is_some());
            }
        }
    }

    #[test]
    fn only_the_reset_command_at_the_command_port_resets() {
        let switch = PowerSwitch::new().unwrap();
        let mut i8042 = I8042::new(switch.clone());
        i8042.write(COMMAND, &[0xfd]);
        i8042.write(DATA, &[0xfe]);
        assert_eq!(switch.happened(), None);
        // `outb` to 0x64, and a wider access that ends there.
        i8042.write(2, &[0, 0, 0xfe]);
        assert_eq!(switch.happened(), Some(PowerEvent::Reset));
    }

    #[test]
    fn linux_finds_no_controller_and_may_reset_at_once() {
        let mut i8042 = I8042::new(PowerSwitch::new().unwrap());
        let mut status = [0u8];
        // `i8042_flush`: 16 bytes out of a buffer that stays full.
        for _ in 0..17 {
            i8042.read(COMMAND, &mut status);
            assert_ne!(status[0] & 0x01, 0);
            i8042.read(DATA, &mut [0]);
        }
        // `kb_wait`: the input buffer is free.
        assert_eq!(status[0] & 0x02, 0);
    }

    #[test]
    fn the_first_event_counts() {
        let switch = PowerSwitch::new().unwrap();
        switch.press(PowerEvent::Quit);
        switch.press(PowerEvent::Off);
        assert_eq!(switch.happened(), Some(PowerEvent::Quit));
    }
}
