//! Loading the guest and setting its vCPUs to the PVH entry.
//!
//! | step | needs | gives |
//! | --- | --- | --- |
//! | [`elf::check`] | the image's bytes | an error unless it is an x86-64 ELF executable |
//! | [`load`] | low memory | segments in place, the PVH entry address |
//! | [`write_start_info`] | low memory, the memory map | the start info's address |
//! | [`set_first_state`] | a vCPU | a vCPU at the entry, as PVH demands it |
//!
//! The protocol is Xen's PVH (`docs/misc/pvh.pandoc` in Xen): 32-bit protected mode without paging, flat
//! segments, EBX the address of `hvm_start_info`. EDI and ESI go beyond it: they are the guest's
//! own agreement with this VMM, see [`guest_abi::layout::CONTROL_MAGIC`].

use std::io::Cursor;

use guest_abi::layout;
use guest_mem::{Gpa, GpaRange};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs};
use kvm_ioctls::VcpuFd;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::GuestAddress;

use crate::Kvm;
use crate::boot_error::BootError;
use guest::GuestRam;
use guest::elf;
use linux_boot::layout::START_INFO;
use linux_boot::memory_map::{Entry, Kind};
use linux_boot::{RegistersError, Start, start_info};

const NO_PVH_ENTRY: &str = "no PVH entry (no ELF note of type 18 named \"Xen\")";

/// Puts the image's segments into low memory and returns its PVH entry.
///
/// # Errors
/// An image that is truncated, does not fit, or has no PVH entry inside low memory.
pub(crate) fn load(memory: &GuestRam, low_memory: u64, image: &[u8]) -> Result<Gpa, BootError> {
    elf::check(image)?;
    let loaded = Elf::load(memory, None, &mut Cursor::new(image), None)
        .map_err(|source| BootError::Load { low_memory, source })?;
    let PvhBootCapability::PvhEntryPresent(GuestAddress(entry)) = loaded.pvh_boot_cap else {
        return Err(BootError::NoEntry(NO_PVH_ENTRY));
    };
    if entry >= low_memory {
        return Err(BootError::WildEntry { entry, low_memory });
    }
    Ok(Gpa::new(entry))
}

/// Writes the start info and the memory map it points to.
pub(crate) fn write_start_info(memory: &GuestRam, ram: &[GpaRange]) -> Result<(), BootError> {
    let map: Vec<_> = ram.iter().map(|&range| Entry { range, kind: Kind::Ram }).collect();
    start_info::write(memory, &map, None, Gpa::new(0)).map_err(BootError::StartInfo)
}

/// Gives a vCPU its CPUID, and sets it to the PVH entry: the magic in EDI, its index in ESI.
pub(crate) fn set_first_state(kvm: &Kvm, fd: &VcpuFd, vcpu: u32, entry: Gpa) -> Result<(), BootError> {
    let failed = |call| move |source| BootError::Registers { vcpu, call, source };
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
    fd.set_cpuid2(&cpuid).map_err(failed("KVM_SET_CPUID2"))?;
    linux_boot::set_registers(fd, &Start::Pvh { entry, start_info: START_INFO })
        .map_err(|RegistersError { call, source }| failed(call)(source))?;
    let regs = fd.get_regs().map_err(failed("KVM_GET_REGS"))?;
    let (rdi, rsi) = (layout::CONTROL_MAGIC.into(), vcpu.into());
    fd.set_regs(&kvm_regs { rdi, rsi, ..regs }).map_err(failed("KVM_SET_REGS"))
}

#[cfg(test)]
mod tests {
    use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_start_info};
    use vm_memory::Bytes;

    use super::*;

    const LOW: u64 = 4 << 20;

    fn memory() -> GuestRam {
        GuestRam::mapped(&[(0, LOW as usize)])
    }

    #[test]
    fn the_test_guest_has_a_pvh_entry() {
        let entry = load(&memory(), LOW, resources::GUEST).unwrap();
        assert!(entry.get() >= layout::IMAGE_GPA && entry.get() < layout::CONTROL_GPA);
    }

    #[test]
    fn the_start_info_is_where_a_pvh_kernel_looks_for_it_and_has_the_memory_map() {
        let memory = memory();
        let ram = [(0, 0xa_0000), (0x10_0000, LOW)]
            .map(|(start, end)| GpaRange::new(Gpa::new(start), Gpa::new(end)).unwrap());
        write_start_info(&memory, &ram).unwrap();
        let info: hvm_start_info = memory.read_obj(GuestAddress(START_INFO.get())).unwrap();
        assert_eq!((info.magic, info.memmap_entries), (0x336e_c578, 2));
        let map = [0, 1].map(|index| {
            let at = info.memmap_paddr + index * size_of::<hvm_memmap_table_entry>() as u64;
            memory.read_obj::<hvm_memmap_table_entry>(GuestAddress(at)).unwrap()
        });
        assert_eq!(map.map(|entry| (entry.addr, entry.size)), [(0, 0xa_0000), (0x10_0000, LOW - 0x10_0000)]);
    }

    #[test]
    fn what_is_no_guest_is_refused_by_name() {
        let guest = resources::GUEST;
        let patched = |at: usize, bytes: &[u8]| {
            let mut image = guest.to_vec();
            image[at..at + bytes.len()].copy_from_slice(bytes);
            image
        };
        let message = |image: &[u8]| load(&memory(), LOW, image).unwrap_err().to_string();
        for (image, words) in [
            (Vec::new(), "0 bytes"),
            (b"MZ".repeat(32), "no ELF file"),
            (patched(4, &[1]), "32-bit"),
            (patched(5, &[2]), "big-endian"),
            (patched(18, &[183, 0]), "AArch64"),
            (patched(18, &[62, 1]), "ELF machine 318"),
            (patched(16, &[1, 0]), "object file"),
            (patched(16, &[2, 1]), "ELF type 258"),
        ] {
            assert!(message(&image).contains(words), "{}", message(&image));
        }
    }

    #[test]
    fn hostile_headers_are_errors_and_nothing_worse() {
        let guest = resources::GUEST;
        // The bytes after the last segment (symbols) are not loaded, and not needed.
        let word = |at: usize| u64::from_le_bytes(guest[at..at + 8].try_into().unwrap());
        let segments = (0..usize::from(guest[56])).map(|index| 64 + 56 * index);
        let loaded = segments.map(|header| word(header + 8) + word(header + 32)).max().unwrap() as usize;
        for cut in (64..loaded).step_by(997) {
            assert!(load(&memory(), LOW, &guest[..cut]).is_err(), "cut at {cut}");
        }
        // Every 8-byte field of the ELF header and the program headers, set to hostile values.
        for at in (24..64 + 3 * 56).step_by(4) {
            for lie in [u64::MAX, 1 << 63, 0, 3, 0x7fff_ffff_ffff_f000] {
                let mut image = guest.to_vec();
                image[at..at + 8].copy_from_slice(&lie.to_le_bytes());
                let _ = load(&memory(), LOW, &image);
            }
        }
    }

    #[test]
    fn an_image_larger_than_low_memory_does_not_fit() {
        let small = GuestRam::mapped(&[(0, 0x10_2000)]);
        assert!(matches!(load(&small, 0x10_2000, resources::GUEST), Err(BootError::Load { .. })));
    }
}
