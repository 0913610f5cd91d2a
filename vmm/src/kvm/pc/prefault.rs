//! Mapping guest memory in the secondary MMU before the guest asks for it (`KVM_PRE_FAULT_MEMORY`, Linux 6.11, two-
//! dimensional paging only).
//!
//! A guest kernel touches memory of its own at any moment. Mapped beforehand, that causes no fault, and the faults
//! that KVM counts in an experiment are those on the memory under test.

use guest_mem::GpaRange;
use kvm_bindings::kvm_pre_fault_memory;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

#[allow(missing_docs, reason = "the macro makes a public function and takes no doc comment")]
mod number {
    use kvm_bindings::{KVMIO, kvm_pre_fault_memory};
    use vmm_sys_util::ioctl_iowr_nr;

    ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);
}
use number::KVM_PRE_FAULT_MEMORY;

const _: () = assert!(size_of::<kvm_pre_fault_memory>() == 64);

/// Maps all of `range`; memory that is mapped already stays as it is.
///
/// # Errors
/// `EOPNOTSUPP` on a KVM that shadows page tables, `ENOTTY` on one that does not know the call, `ENOENT` where there
/// is no memslot.
pub fn map(fd: &VcpuFd, range: GpaRange) -> std::io::Result<()> {
    let mut request = kvm_pre_fault_memory {
        gpa: range.start().get(),
        size: range.len(),
        ..kvm_pre_fault_memory::default()
    };
    while request.size > 0 {
        // SAFETY: the ioctl reads the struct and writes it back; KVM maps only memory that memslots give it anyway.
        let done = unsafe { ioctl_with_mut_ref(fd, KVM_PRE_FAULT_MEMORY(), &mut request) };
        if done == 0 {
            // It moves `gpa` on and counts `size` down by as much as it mapped.
            continue;
        }
        let error = std::io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR | libc::EAGAIN) => {}
            _ => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_the_kernels() {
        // _IOWR(0xAE, 0xd5, 64 bytes)
        assert_eq!(KVM_PRE_FAULT_MEMORY(), 3 << 30 | 64 << 16 | 0xae << 8 | 0xd5);
    }
}
