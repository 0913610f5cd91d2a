//! The bare test guest.
//!
//! ```text
//!   arch, ring 0:    PVH entry, long mode, descriptor tables ── iretq ──> guest_main, ring 3
//!   ring 3:          doorbell READY ── order ── carry it out ── outcome ── doorbell DONE ── order ── …
//!   any exception:   arch leaves the registers on the fault stack, doorbell FAULT
//! ```
//!
//! Everything that does work runs in ring 3, because that is where every kind of KVM runs a guest natively:
//! one without hardware virtualisation emulates ring 0 instruction by instruction.
//!
//! Booted by a VMM that prepared no control areas, it tests the memory it was given and says so on the serial
//! port.

#![no_std]
#![no_main]

mod arch;
mod orders;
mod selftest;

use core::panic::PanicInfo;

use guest_abi::layout;

/// Where ring 3 begins: `vcpu` is the vCPU's index, `controlled` 1 if the VMM prepared control areas,
/// `start_info` the PVH start info's address.
#[unsafe(no_mangle)]
extern "C" fn guest_main(vcpu: u32, controlled: u32, start_info: u32) -> ! {
    if controlled == 1 { orders::serve(vcpu) } else { selftest::run(start_info) }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    orders::report_panic(info);
    arch::ring_forever(layout::doorbell::PANIC)
}
