//! x86-64: the PVH entry, ring 0, and ring 3.

mod cpu;
mod memory_map;
mod paging;

use guest_abi::arch::DOORBELL_PORT;
use guest_abi::layout;

pub use cpu::{out, ring, ring_forever};
pub use guest_abi::arch::tsc;
pub use memory_map::largest_ram;
pub use paging::{map_up_to, warm};

core::arch::global_asm!(
    include_str!("stub.s"),
    magic = const layout::CONTROL_MAGIC,
    max_vcpus = const layout::MAX_VCPUS,
    stack_shift = const STACK_BYTES.trailing_zeros(),
    stack_bytes = const STACK_BYTES,
    area_size = const layout::AREA_SIZE,
    control_gpa = const layout::CONTROL_GPA,
    fault_stack_top = const guest_abi::block::FAULT_STACK_TOP,
    vectors = const VECTORS_GPA,
    port = const DOORBELL_PORT,
    fault = const layout::doorbell::FAULT,
    options(att_syntax),
);

/// Bytes of each vCPU's stack in ring 3.
const STACK_BYTES: u32 = 0x4000;

/// Where `link.ld` puts the exception vectors.
const VECTORS_GPA: u64 = layout::IMAGE_GPA + 0x1000;

/// The first 16550's transmit register. The FIFO of an emulated one is never full.
const SERIAL: u16 = 0x3f8;
/// The keyboard controller's command port; 0xfe pulses the reset line.
const KEYBOARD: u16 = 0x64;

/// Writes a byte to the serial port of a VMM that knows nothing of control areas.
pub fn say(byte: u8) {
    out(SERIAL, byte);
}

/// Resets the machine.
pub fn reset() {
    out(KEYBOARD, 0xfe);
}
