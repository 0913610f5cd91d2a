//! The boot vCPU's first registers. The other vCPUs are left as KVM makes them: waiting for the boot vCPU's call.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use super::layout::{BOOT_STACK_END, GDT};
use super::load::Start;
use super::long_mode::{self, BOOT_CS, BOOT_DS, BOOT_TR, ENTRIES, segment};

/// `X86_CR0_PE`, protected mode; `X86_CR0_ET`, which is always set; `X86_CR0_PG`, paging.
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
/// `X86_CR4_PAE`, without which there is no long mode.
const CR4_PAE: u64 = 1 << 5;
/// `EFER_LME` and `EFER_LMA`, long mode enabled and active.
const EFER_LONG_MODE: u64 = 1 << 8 | 1 << 10;
/// RFLAGS' bit 1 is always set; interrupts are off.
const RFLAGS: u64 = 2;

/// Why a vCPU could not be set.
#[derive(Debug, thiserror::Error)]
#[error("KVM refuses the boot vCPU's first registers ({call})")]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub struct RegistersError {
    pub call: &'static str,
    pub source: kvm_ioctls::Error,
}

/// Sets the boot vCPU to where the kernel begins, as its boot protocol demands it.
pub fn set_registers(fd: &VcpuFd, start: &Start) -> Result<(), RegistersError> {
    let failed = |call| move |source| RegistersError { call, source };
    let mut sregs = fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    let (code, data, task) = match start {
        Start::Linux64 { .. } => (segment(BOOT_CS), segment(BOOT_DS), segment(BOOT_TR)),
        Start::Pvh { .. } => (flat(0x08, 0xb), flat(0x10, 0x3), task_32()),
    };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = task;
    let regs = match *start {
        Start::Linux64 { entry, boot_params } => {
            let limit = (size_of_val(&ENTRIES) - 1) as u16;
            sregs.gdt = kvm_dtable { base: GDT.get(), limit, ..kvm_dtable::default() };
            sregs.cr3 = long_mode::CR3.get();
            sregs.cr4 = CR4_PAE;
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.efer = EFER_LONG_MODE;
            kvm_regs {
                rip: entry.get(),
                rsi: boot_params.get(),
                rsp: BOOT_STACK_END.get(),
                rbp: BOOT_STACK_END.get(),
                rflags: RFLAGS,
                ..kvm_regs::default()
            }
        }
        Start::Pvh { entry, start_info } => {
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
            sregs.efer = 0;
            kvm_regs { rip: entry.get(), rbx: start_info.get(), rflags: RFLAGS, ..kvm_regs::default() }
        }
    };
    fd.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
    fd.set_regs(&regs).map_err(failed("KVM_SET_REGS"))
}

/// A flat 32-bit segment.
fn flat(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment { limit: u32::MAX, selector, type_, present: 1, db: 1, s: 1, g: 1, ..kvm_segment::default() }
}

/// A busy 32-bit task, which no code ever switches to.
fn task_32() -> kvm_segment {
    kvm_segment { limit: 0x67, selector: 0x18, type_: 0xb, present: 1, ..kvm_segment::default() }
}

#[cfg(test)]
mod tests;
