//! The bare test guest.
//!
//! ```text
//!   stub.s, ring 0:  PVH entry, long mode, descriptor tables ── iretq ──> guest_main, ring 3
//!   ring 3:          doorbell READY ── order ── carry it out ── outcome ── doorbell DONE ── order ── …
//!   any exception:   stub.s leaves the registers on the fault stack, doorbell FAULT
//! ```
//!
//! Everything that does work runs in ring 3, because that is where every kind of KVM runs a guest natively:
//! one without hardware virtualisation emulates ring 0 instruction by instruction.
//!
//! Booted by a VMM that prepared no control areas, it tests the memory it was given and says so on the serial
//! port.

#![no_std]
#![no_main]

mod cpu;
mod memory_map;
mod orders;
mod paging;
mod selftest;

use core::panic::PanicInfo;

use guest_abi::layout;

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
    port = const layout::DOORBELL_PORT,
    fault = const layout::doorbell::FAULT,
    options(att_syntax),
);

/// Bytes of each vCPU's stack in ring 3.
const STACK_BYTES: u32 = 0x4000;

/// Where `link.ld` puts the exception vectors.
const VECTORS_GPA: u64 = layout::IMAGE_GPA + 0x1000;

/// Where ring 3 begins: `vcpu` is the vCPU's index, `controlled` 1 if the VMM prepared control areas,
/// `start_info` the PVH start info's address.
#[unsafe(no_mangle)]
extern "C" fn guest_main(vcpu: u32, controlled: u32, start_info: u32) -> ! {
    if controlled == 1 { orders::serve(vcpu) } else { selftest::run(start_info) }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    orders::report_panic(info);
    cpu::ring_forever(layout::doorbell::PANIC)
}
