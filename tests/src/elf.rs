//! ELF images with a PVH entry, made on the spot: guests that misbehave in ways the test guest never would.

use linux_boot::fixture::{Load, elf};

/// Where the code is linked.
pub const CODE_GPA: u32 = 0x10_0000;

/// An x86-64 ELF executable whose PVH entry runs these bytes, in 32-bit protected mode without paging.
pub fn image(code: &[u8]) -> Vec<u8> {
    let text = Load { at: CODE_GPA.into(), bytes: code.to_vec(), memory: code.len() as u64 };
    elf(CODE_GPA.into(), &[text], Some(CODE_GPA))
}
