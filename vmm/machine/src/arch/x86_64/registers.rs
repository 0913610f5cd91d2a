//! A vCPU's registers, for the report of a crash.

use guest::Registers;
use kvm_ioctls::VcpuFd;

/// The vCPU's registers; `None` if KVM refuses to read them.
pub(crate) fn registers(fd: &VcpuFd) -> Option<Registers> {
    let (regs, sregs) = (fd.get_regs().ok()?, fd.get_sregs().ok()?);
    Some(Registers {
        rip: regs.rip,
        rsp: regs.rsp,
        rflags: regs.rflags,
        general: [
            regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp, regs.r8, regs.r9, regs.r10,
            regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ],
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        efer: sregs.efer,
        cs: sregs.cs.selector,
        ss: sregs.ss.selector,
    })
}
