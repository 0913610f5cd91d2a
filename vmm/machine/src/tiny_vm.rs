//! The smallest virtual machine that can be timed: one vCPU that starts in ring 3 of long mode and runs a loop
//! of a few instructions. It has no ring 0 code at all, so it runs under every KVM, also under one that
//! emulates ring 0.
//!
//! ```text
//! gpa  0x1000 PML4, 0x2000 PDPT, 0x3000 and 0x4000 page directories (2 MiB pages, identity, user)
//!      0x6000 TSS with an I/O permission bitmap of zeroes: IN and OUT work in ring 3
//!      0x10000 code                       0x4000_0000 memory to touch, a slot of its own,
//!                                                    of which one page in eight is used
//! ```

use crate::Kvm;
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use rustix::io::Errno;
use rustix::mm::Advice;

use host::scratch::{HUGE, PAGE, Scratch};

const PML4: usize = 0x1000;
const PDPT: usize = 0x2000;
const LOW_DIRECTORY: usize = 0x3000;
const HIGH_DIRECTORY: usize = 0x4000;
const GDT: usize = 0x5000;
const TSS: usize = 0x6000;
/// Where the code is, and the vCPU begins.
pub const CODE: usize = 0x10000;
const TOUCHED: u64 = 1 << 30;
const DOORBELL: u16 = 0xf4;

const PRESENT_WRITABLE_USER: u64 = 0b111;
const HUGE_PAGE: u64 = 1 << 7;

const TSS_BITMAP_POINTER: usize = 102;
const TSS_LEN: usize = 104;
const BITMAP_LEN: usize = 65536 / 8;

const CR0_PE_MP_ET_NE_PG: u64 = 0x8000_0033;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME_LMA_NX: u64 = 0xd00;
/// Bit 1, which is always set, and an I/O privilege level that allows IN and OUT without a look at the TSS: QEMU's
/// emulation of SVM looks, but only into one that `ltr` has loaded. Where KVM emulates ring 0, ring 3 does not get
/// this level, and the bitmap counts.
const RFLAGS_IOPL_3: u64 = 0x3002;

/// `1: out 0xf4, al; jmp 1b`
const RING: [u8; 4] = [0xe6, 0xf4, 0xeb, 0xfc];
/// `1: inc byte [rdi]; add rdi, STRIDE; out 0xf4, al; jmp 1b`
const TOUCH_AND_RING: [u8; 13] = [0xfe, 0x07, 0x48, 0x81, 0xc7, 0, 0x80, 0, 0, 0xe6, 0xf4, 0xeb, 0xf3];

/// From one touched page to the next. A fault also installs the SPTEs of resident neighbours, in aligned
/// groups of eight: with a lesser stride most touches would not fault.
const STRIDE: usize = 8 * PAGE;
const _: () = assert!(STRIDE == 0x8000 && TOUCH_AND_RING[6] == 0x80);

/// Why there is no tiny machine, or why it stopped.
#[derive(Debug, thiserror::Error)]
pub enum TinyVmError {
    /// A call of KVM's, by its name, that was refused.
    #[error("{0}: {1}")]
    Kvm(&'static str, kvm_ioctls::Error),
    /// There is no KVM.
    #[error(transparent)]
    NoKvm(#[from] crate::NoKvm),
    /// Its memory could not be mapped.
    #[error("no memory for it: {0}")]
    Memory(Errno),
    /// The vCPU left KVM in a way that its program does not.
    #[error("it left KVM in an unexpected way: {0}")]
    Exit(String),
}

/// What the vCPU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Leaves KVM, again and again.
    Ring,
    /// Touches another page, then leaves KVM.
    TouchAndRing,
}

/// A virtual machine of one vCPU and two memslots.
pub struct TinyVm {
    // Order matters: the vCPU and the VM go before the memory they use.
    vcpu: VcpuFd,
    _vm: VmFd,
    _low: Scratch,
    /// Only the tests look at it; the VM needs it mapped.
    #[cfg_attr(not(test), expect(dead_code, reason = "kept for the VM, read by the tests"))]
    touched: Scratch,
}

impl TinyVm {
    /// Makes one with `pages` pages of 4 KiB to touch; `resident` says whether the host has them already.
    pub fn new(program: Program, pages: usize, resident: bool) -> Result<Self, TinyVmError> {
        let kvm = Kvm::open()?;
        let vm = kvm.create_vm()?;
        let low = low_memory(program).map_err(TinyVmError::Memory)?;
        let touched = touched_memory(pages, resident).map_err(TinyVmError::Memory)?;
        add_slot(&vm, 0, 0, &low)?;
        add_slot(&vm, 1, TOUCHED, &touched)?;
        let vcpu = vm.create_vcpu(0).map_err(|error| TinyVmError::Kvm("KVM_CREATE_VCPU", error))?;
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| TinyVmError::Kvm("KVM_GET_SUPPORTED_CPUID", error))?;
        vcpu.set_cpuid2(&cpuid).map_err(|error| TinyVmError::Kvm("KVM_SET_CPUID2", error))?;
        enter_ring_3(&vcpu)?;
        Ok(Self { vcpu, _vm: vm, _low: low, touched })
    }

    /// Runs until the vCPU rings.
    pub fn run_to_ring(&mut self) -> Result<(), TinyVmError> {
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(DOORBELL, _)) => return Ok(()),
                Ok(other) => return Err(TinyVmError::Exit(format!("{other:?}"))),
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) => return Err(TinyVmError::Kvm("KVM_RUN", error)),
            }
        }
    }
}

fn low_memory(program: Program) -> Result<Scratch, Errno> {
    let mut low = Scratch::new(HUGE)?;
    write_tables(|at, bytes| low.write(at, bytes));
    match program {
        Program::Ring => low.write(CODE, &RING),
        Program::TouchAndRing => low.write(CODE, &TOUCH_AND_RING),
    }
    Ok(low)
}

/// Writes what ring 3 needs into the first of a guest's memory, whose other bytes are zero there.
pub fn write_tables(mut write: impl FnMut(usize, &[u8])) {
    let mut entry = |at: usize, value: u64| write(at, &value.to_le_bytes());
    entry(PML4, PDPT as u64 | PRESENT_WRITABLE_USER);
    entry(PDPT, LOW_DIRECTORY as u64 | PRESENT_WRITABLE_USER);
    entry(PDPT + 8, HIGH_DIRECTORY as u64 | PRESENT_WRITABLE_USER);
    for index in 0..512 {
        let offset = index * HUGE as u64;
        entry(LOW_DIRECTORY + 8 * index as usize, offset | HUGE_PAGE | PRESENT_WRITABLE_USER);
        entry(HIGH_DIRECTORY + 8 * index as usize, (TOUCHED + offset) | HUGE_PAGE | PRESENT_WRITABLE_USER);
    }
    write(TSS + TSS_BITMAP_POINTER, &(TSS_LEN as u16).to_le_bytes());
    // The bitmap itself stays zero: every port is allowed. A byte of ones must follow it.
    write(TSS + TSS_LEN + BITMAP_LEN, &[0xff]);
}

fn touched_memory(pages: usize, resident: bool) -> Result<Scratch, Errno> {
    let mut touched = Scratch::new(pages.max(1) * STRIDE)?;
    // A kernel without THP does not know the advice and needs none.
    let _ = touched.advise(touched.len(), Advice::LinuxNoHugepage);
    if resident {
        touched.touch_every(STRIDE);
    }
    Ok(touched)
}

fn add_slot(vm: &VmFd, slot: u32, gpa: u64, memory: &Scratch) -> Result<(), TinyVmError> {
    let region = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: gpa,
        memory_size: memory.len() as u64,
        userspace_addr: memory.address(),
    };
    // SAFETY: the memory is mapped, is not referred to from Rust, and `TinyVm` drops it after the VM.
    unsafe { vm.set_user_memory_region(region) }
        .map_err(|error| TinyVmError::Kvm("KVM_SET_USER_MEMORY_REGION", error))
}

/// Has the vCPU begin at [`CODE`] in ring 3, over the [tables](write_tables).
pub fn enter_ring_3(vcpu: &VcpuFd) -> Result<(), TinyVmError> {
    let mut sregs = vcpu.get_sregs().map_err(|error| TinyVmError::Kvm("KVM_GET_SREGS", error))?;
    let flat = kvm_segment { limit: u32::MAX, present: 1, dpl: 3, s: 1, g: 1, ..Default::default() };
    let data = kvm_segment { selector: 0x2b, type_: 3, db: 1, ..flat };
    sregs.cs = kvm_segment { selector: 0x33, type_: 11, l: 1, ..flat };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        base: TSS as u64,
        limit: (TSS_LEN + BITMAP_LEN) as u32,
        selector: 0x40,
        type_: 11,
        present: 1,
        ..Default::default()
    };
    (sregs.gdt.base, sregs.gdt.limit) = (GDT as u64, 0x7f);
    sregs.cr0 = CR0_PE_MP_ET_NE_PG;
    sregs.cr3 = PML4 as u64;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME_LMA_NX;
    vcpu.set_sregs(&sregs).map_err(|error| TinyVmError::Kvm("KVM_SET_SREGS", error))?;
    let regs = kvm_regs { rip: CODE as u64, rdi: TOUCHED, rflags: RFLAGS_IOPL_3, ..Default::default() };
    vcpu.set_regs(&regs).map_err(|error| TinyVmError::Kvm("KVM_SET_REGS", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs: Kvm"]
    fn each_ring_has_touched_one_more_page() {
        for (program, resident) in
            [(Program::TouchAndRing, false), (Program::TouchAndRing, true), (Program::Ring, false)]
        {
            let mut vm = TinyVm::new(program, 8, resident).unwrap();
            let before: Vec<u8> = (0..8).map(|page| vm.touched.read(page * STRIDE)).collect();
            for _ in 0..3 {
                vm.run_to_ring().unwrap();
            }
            let touched = (0..8).filter(|&page| vm.touched.read(page * STRIDE) != before[page]);
            let expected = if program == Program::TouchAndRing { 0..3 } else { 0..0 };
            assert!(touched.eq(expected), "{program:?}, resident: {resident}");
        }
    }
}
