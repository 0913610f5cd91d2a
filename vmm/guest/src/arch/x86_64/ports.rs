//! The I/O ports of a PC's devices, and what is written to them. The devices serve them; ACPI tables and firmware tell the
//! guest of them.

use std::ops::Range;

/// The first serial port.
pub const COM1: Range<u16> = 0x3f8..0x400;
/// The interrupt of the first serial port.
pub const COM1_GSI: u32 = 4;

/// The i8042 keyboard controller: its data port first, its command port last. 0x61 to 0x63 belong to other devices, and
/// answer as an empty bus does.
pub const I8042: Range<u16> = 0x60..0x65;

/// The registers of a hardware-reduced ACPI machine: sleep control, sleep status, reset.
pub const ACPI_POWER: Range<u16> = SLEEP_CONTROL..RESET + 1;
/// ACPI's sleep control register.
pub const SLEEP_CONTROL: u16 = 0x600;
/// ACPI's sleep status register.
pub const SLEEP_STATUS: u16 = 0x601;
/// The sleep type of S5, soft off, as `\_S5` says it.
pub const SLEEP_TYPE_S5: u8 = 5;
/// ACPI's reset register. [`RESET_VALUE`] written to it resets the machine.
pub const RESET: u16 = 0x602;
/// See [`RESET`].
pub const RESET_VALUE: u8 = 1;
