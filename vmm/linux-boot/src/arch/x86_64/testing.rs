//! A virtual machine of this code alone.
#![allow(clippy::unwrap_used, reason = "for tests")]

use super::load::{Boot, LoadError, Start, load};
use crate::{Kernel, Platform};
use guest::GuestRam;
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

/// Loads the kernel of this file alone: no initrd, no command line.
pub fn load_alone(memory: &GuestRam, platform: &Platform, file: &[u8]) -> Result<Start, LoadError> {
    let kernel = &Kernel::identify(file).unwrap();
    load(memory, platform, &Boot { kernel, initrd: None, cmdline: "", in_guest_decompression: false })
}

/// One vCPU, as KVM makes it, of a virtual machine with this memory. The memory must outlive both.
#[expect(clippy::disallowed_methods, reason = "the crate that proves KVM is built on this one")]
pub fn vcpu(memory: &GuestRam) -> (VmFd, VcpuFd) {
    let kvm = Kvm::new().unwrap();
    let vm = kvm.create_vm().unwrap();
    let region = memory.iter().next().unwrap();
    let slot = kvm_userspace_memory_region {
        memory_size: region.len(),
        userspace_addr: region.get_host_address(MemoryRegionAddress(0)).unwrap() as u64,
        ..kvm_userspace_memory_region::default()
    };
    // SAFETY: the memory is mapped until after the vCPU and the VM are gone.
    unsafe { vm.set_user_memory_region(slot) }.unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap()).unwrap();
    (vm, vcpu)
}
