//! vCPUs that run a few bytes of machine code.

use guest_abi::layout::IMAGE_GPA;
use guest_mem::{Gpa, PMD_SIZE};
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::boot;
use crate::testing::LEAST;
use crate::{GuestCpu, Kvm, VmCore};
use guest::GuestRam;

/// The least of VMs, and its vCPU, which runs this code next: in 32-bit protected mode, without tables of any kind.
pub(crate) fn about_to_run(code: &[u8]) -> (VmCore, GuestCpu) {
    let kvm = Kvm::open().unwrap();
    let core = VmCore::new(&kvm, &LEAST).unwrap();
    let memory = GuestRam::new([(Gpa::new(0), core.low()[0].clone())]);
    memory.write_slice(code, GuestAddress(IMAGE_GPA)).unwrap();
    let vcpu = core.create_vcpu(0).unwrap();
    boot::set_first_state(&kvm, &vcpu, 0, Gpa::new(IMAGE_GPA)).unwrap();
    (core, vcpu)
}

/// Where the code of [`in_ring_3`] lies.
const RING_3_CODE: u64 = 0x1_0000;

/// Has the vCPU run this code next in ring 3 of long mode, over page tables at the beginning of its guest's memory: a KVM
/// that emulates ring 0 takes no faults there, and performs the guest's writes itself.
pub(crate) fn in_ring_3(memory: &GuestRam, vcpu: &VcpuFd, code: &[u8]) {
    const PML4: u64 = 0x1000;
    const PDPT: u64 = 0x2000;
    const DIRECTORIES: u64 = 0x3000;
    const PRESENT_WRITABLE_USER: u64 = 0b111;
    const LARGE: u64 = 1 << 7;
    let entry =
        |at: u64, value: u64| memory.write_obj(value | PRESENT_WRITABLE_USER, GuestAddress(at)).unwrap();
    entry(PML4, PDPT);
    // The first 2 GiB, identity.
    (0..2).for_each(|index| entry(PDPT + 8 * index, DIRECTORIES + 0x1000 * index));
    (0..1024).for_each(|index| entry(DIRECTORIES + 8 * index, (index * PMD_SIZE) | LARGE));
    memory.write_slice(code, GuestAddress(RING_3_CODE)).unwrap();

    let flat = kvm_segment { limit: u32::MAX, present: 1, dpl: 3, s: 1, g: 1, ..Default::default() };
    let data = kvm_segment { selector: 0x2b, type_: 3, db: 1, ..flat };
    let (cs, tr) = (
        kvm_segment { selector: 0x33, type_: 11, l: 1, ..flat },
        kvm_segment { limit: 0x67, selector: 0x40, type_: 11, present: 1, ..Default::default() },
    );
    let [ds, es, fs, gs, ss] = [data; 5];
    // PE, MP, ET, NE, PG; PAE; LME, LMA, NX.
    let (cr0, cr3, cr4, efer) = (0x8000_0033, PML4, 1 << 5, 0xd00);
    let sregs = vcpu.get_sregs().unwrap();
    vcpu.set_sregs(&kvm_sregs { cs, ds, es, fs, gs, ss, tr, cr0, cr3, cr4, efer, ..sregs }).unwrap();
    vcpu.set_regs(&kvm_regs { rip: RING_3_CODE, rflags: 2, ..Default::default() }).unwrap();
}
