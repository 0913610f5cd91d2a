use kvm_ioctls::VcpuExit;

use super::super::fixture::{self, KERNEL_AT, Load};
use super::super::layout::node0;
use super::super::testing::{load_alone, vcpu};
use super::*;
use crate::Platform;
use guest::GuestRam;

/// Runs a kernel of this code and returns the bytes it wrote to port 0x3f8 before it halted.
fn run(code: &[u8], pvh: bool) -> Vec<u8> {
    let platform = Platform { vcpus: 1, memory: node0(32 << 20).unwrap(), virtio: Vec::new() };
    let memory = GuestRam::mapped(&[(0, 32 << 20)]);
    let text = Load { at: KERNEL_AT, bytes: code.to_vec(), memory: 4096 };
    let file = fixture::elf(KERNEL_AT, &[text], pvh.then_some(KERNEL_AT as u32));
    let start = load_alone(&memory, &platform, &file).unwrap();
    let (_vm, mut vcpu) = vcpu(&memory);
    set_registers(&vcpu, &start).unwrap();
    let mut written = Vec::new();
    loop {
        match vcpu.run().unwrap() {
            VcpuExit::IoOut(0x3f8, bytes) => written.extend_from_slice(bytes),
            VcpuExit::Hlt => return written,
            other => panic!("after {written:x?}: {other:?}"),
        }
    }
}

#[test]
#[ignore = "needs: Kvm"]
fn a_64_bit_kernel_finds_the_zero_page_by_rsi() {
    let code = [
        0x48, 0x0f, 0xb7, 0xde, // movzx rbx, si: decodes as this only in long mode
        0x8b, 0x86, 0x02, 0x02, 0x00, 0x00, // mov eax, [rsi + 0x202]: "HdrS"
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xef, // out dx, eax
        0x48, 0x89, 0xd8, // mov rax, rbx
        0x66, 0xef, // out dx, ax
        0x8c, 0xc8, 0x66, 0xef, // mov eax, cs; out dx, ax
        0x8c, 0xd8, 0x66, 0xef, // mov eax, ds; out dx, ax
        // The selectors can be loaded again from the GDT in memory.
        0x8e, 0xd8, 0x8e, 0xd0, // mov ds, eax; mov ss, eax
        0xf4, // hlt
    ];
    let written = run(&code, false);
    assert_eq!(written, b"HdrS\x00\x70\x10\x00\x18\x00");
}

#[test]
#[ignore = "needs: Kvm"]
fn a_pvh_kernel_finds_the_start_info_by_ebx() {
    let code = [
        0x8b, 0x03, // mov eax, [ebx]: the magic
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xef, // out dx, eax
        0x0f, 0x20, 0xc0, // mov eax, cr0
        0xef, // out dx, eax
        0x40, // inc eax in 32-bit mode, a prefix in long mode
        0xef, // out dx, eax
        0xf4, // hlt
    ];
    let written = run(&code, true);
    assert_eq!(written, [&0x336e_c578_u32.to_le_bytes()[..], &[0x11, 0, 0, 0, 0x12, 0, 0, 0]].concat());
}
