//! The only firmware this machine has: nine bytes that reset it.
//!
//! A hardware-reduced ACPI platform makes Linux restart by EFI, and without EFI by a jump to f000:fff0 in real mode,
//! where a PC's BIOS has its reset vector; it tries neither ACPI's reset register nor the keyboard controller
//! (`reboot_init` in arch/x86/kernel/reboot.c; `reboot=a` or `reboot=k` would change its mind). Here it finds:
//!
//! ```text
//! f000:fff0   mov al, RESET_VALUE
//!             mov dx, RESET
//!             out dx, al
//!             hlt
//!             jmp back to the hlt
//! ```

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout::RESET_VECTOR;
use guest::GuestRam;
use guest::ports::{RESET, RESET_VALUE};

const PORT: [u8; 2] = RESET.to_le_bytes();
/// The code. It has room for 16 bytes.
const CODE: [u8; 9] = [0xb0, RESET_VALUE, 0xba, PORT[0], PORT[1], 0xee, 0xf4, 0xeb, 0xfd];

/// Writes the code to its place.
pub fn write(memory: &GuestRam) -> Result<(), GuestMemoryError> {
    memory.write_slice(&CODE, GuestAddress(RESET_VECTOR.get()))
}

#[cfg(test)]
mod tests {
    use kvm_ioctls::VcpuExit;

    use super::super::testing::vcpu;
    use super::*;

    #[test]
    #[ignore = "needs: Kvm"]
    fn a_jump_to_the_reset_vector_resets() {
        let memory = GuestRam::mapped(&[(0, 1 << 20)]);
        write(&memory).unwrap();
        let (_vm, mut vcpu) = vcpu(&memory);
        // As after the jump, which loads CS anew; the rest is a processor in real mode as KVM makes it.
        let mut sregs = vcpu.get_sregs().unwrap();
        (sregs.cs.selector, sregs.cs.base) = (0xf000, 0xf_0000);
        vcpu.set_sregs(&sregs).unwrap();
        let regs = kvm_bindings::kvm_regs { rip: 0xfff0, rflags: 2, ..kvm_bindings::kvm_regs::default() };
        vcpu.set_regs(&regs).unwrap();
        match vcpu.run().unwrap() {
            VcpuExit::IoOut(port, value) => assert_eq!((port, value), (RESET, &[RESET_VALUE][..])),
            other => panic!("{other:?}"),
        }
    }
}
