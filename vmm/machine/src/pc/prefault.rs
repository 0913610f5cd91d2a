//! Mapping guest memory in the secondary MMU before the guest asks for it (`KVM_PRE_FAULT_MEMORY`, Linux 6.11, two-
//! dimensional paging only).
//!
//! A guest kernel touches memory of its own at any moment. Mapped beforehand, that causes no fault, and the faults
//! that KVM counts in an experiment are those on the memory under test.

use guest_mem::GpaRange;
use kvm_bindings::kvm_pre_fault_memory;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::syscall::SyscallReturnCode;

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
    map_all(range, |request| {
        // SAFETY: the ioctl reads the struct and writes it back; KVM maps only memory that memslots give it anyway.
        let answer = unsafe { ioctl_with_mut_ref(fd, KVM_PRE_FAULT_MEMORY(), request) };
        SyscallReturnCode(answer).into_empty_result()
    })
}

/// Calls until all is mapped: each call moves `gpa` on and counts `size` down by as much as it mapped.
fn map_all(
    range: GpaRange,
    mut call: impl FnMut(&mut kvm_pre_fault_memory) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut request = kvm_pre_fault_memory {
        gpa: range.start().get(),
        size: range.len(),
        ..kvm_pre_fault_memory::default()
    };
    while request.size > 0 {
        match call(&mut request) {
            Err(error) if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => {
                return Err(error);
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use guest_mem::Gpa;

    use super::*;
    use crate::testing::about_to_run;

    #[test]
    fn the_number_is_the_kernels() {
        // _IOWR(0xAE, 0xd5, 64 bytes)
        assert_eq!(KVM_PRE_FAULT_MEMORY(), 3 << 30 | 64 << 16 | 0xae << 8 | 0xd5);
    }

    fn range(start: u64, len: u64) -> GpaRange {
        GpaRange::with_len(Gpa::new(start), len).unwrap()
    }

    /// A KVM that maps a page a call, and leaves it to every errno in turn to interrupt it.
    #[test]
    fn what_is_interrupted_goes_on_where_it_was() {
        let mut interruptions = [libc::EINTR, libc::EAGAIN].into_iter();
        let mut mapped = Vec::new();
        let mapping = map_all(range(0x5000, 0x3000), |request| {
            if let Some(errno) = interruptions.next() {
                return Err(std::io::Error::from_raw_os_error(errno));
            }
            assert_ne!(request.size, 0, "KVM refuses this");
            mapped.push(request.gpa);
            (request.gpa, request.size) = (request.gpa + 0x1000, request.size - 0x1000);
            Ok(())
        });
        mapping.unwrap();
        assert_eq!(mapped, [0x5000, 0x6000, 0x7000]);
        let refused = map_all(range(0, 0x1000), |_| Err(std::io::Error::from_raw_os_error(libc::ENOENT)));
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    #[ignore = "needs: Kvm"]
    fn kvm_maps_memory_or_says_that_it_cannot() {
        let (core, vcpu) = about_to_run(&[]);
        match map(&vcpu, range(0, 0x10_0000)) {
            Ok(()) => assert_ne!(core.stats.leaves().unwrap_or_default().pages_4k, 0),
            Err(error) => {
                let errno = error.raw_os_error();
                assert!(matches!(errno, Some(libc::EOPNOTSUPP | libc::ENOTTY)), "{error}");
            }
        }
    }
}
