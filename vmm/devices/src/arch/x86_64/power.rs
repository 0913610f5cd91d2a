//! The registers by which a guest ends its machine: ACPI's sleep and reset registers, and the keyboard controller's reset line.

use std::sync::Arc;

use guest::ports::{self, RESET_VALUE, SLEEP_TYPE_S5};

use crate::bus::BusDevice;
use crate::power::{PowerEvent, PowerSwitch};

/// Offsets of the i8042's data and command ports.
const DATA: u64 = 0;
const COMMAND: u64 = 4;
/// "Pulse the reset line".
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

/// Offsets of ACPI's registers.
const SLEEP_CONTROL: u64 = 0;
const RESET: u64 = (ports::RESET - ports::SLEEP_CONTROL) as u64;
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
                SLEEP_CONTROL
                    if byte & SLP_EN != 0 && byte >> SLP_TYP_SHIFT & SLP_TYP_MASK == SLEEP_TYPE_S5 =>
                {
                    self.0.press(PowerEvent::Off);
                }
                RESET if byte == RESET_VALUE => self.0.press(PowerEvent::Reset),
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
}
