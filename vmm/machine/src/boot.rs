//! Loading the guest and setting its vCPUs to the PVH entry.
//!
//! | step | needs | gives |
//! | --- | --- | --- |
//! | [`elf::check`] | the image's bytes | an error for what is no x86-64 ELF executable |
//! | [`load`] | low memory | segments in place, the PVH entry address |
//! | [`write_start_info`] | low memory, the memory map | the start info's address |
//! | [`set_registers`] | a vCPU | a vCPU at the entry, as PVH demands it |
//!
//! The protocol is Xen's PVH (`docs/misc/pvh.pandoc` in Xen): 32-bit protected mode without paging, flat
//! segments, EBX the address of `hvm_start_info`. What EDI and ESI say beyond it is the guest's own
//! agreement with this VMM, see [`guest_abi::layout::CONTROL_MAGIC`].

use program::exit::{Class, Classified};
use std::io::Cursor;

use guest_abi::layout;
use guest_mem::{Gpa, GpaRange};
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_start_info};
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::GuestAddress;

use guest::GuestRam;
use guest::elf::{self, NotAGuest};

/// Where the start info lies.
const START_INFO_GPA: u64 = 0x7000;
/// Where its memory map lies.
const MEMORY_MAP_GPA: u64 = 0x7100;
/// `XEN_HVM_START_MAGIC_VALUE`.
const START_MAGIC: u32 = 0x336e_c578;
/// `XEN_HVM_MEMMAP_TYPE_RAM`.
const RAM: u32 = 1;
/// Why a guest could not be started.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file is not what this machine runs.
    #[error(transparent)]
    NotAGuest(#[from] NotAGuest),
    /// linux-loader could not place it.
    #[error("the guest kernel cannot be loaded into {low_memory} bytes of low memory")]
    Load {
        /// How much memory there is below the arena.
        low_memory: u64,
        /// What went wrong there.
        source: linux_loader::loader::Error,
    },
    /// There is no entry for PVH.
    #[error("the guest kernel has no PVH entry (no ELF note of type 18 named \"Xen\"): build it with one")]
    NoPvhEntry,
    /// The entry lies outside what was loaded.
    #[error("the guest kernel's PVH entry {entry:#x} lies outside of its {low_memory} bytes of low memory")]
    WildEntry {
        /// The entry.
        entry: u64,
        /// How much memory there is below the arena.
        low_memory: u64,
    },
    /// The start info could not be written.
    #[error("the PVH start info cannot be written")]
    StartInfo(#[source] linux_loader::configurator::Error),
    /// The vCPU refuses its registers.
    #[error("KVM refuses vCPU {vcpu}'s first registers ({call})")]
    Registers {
        /// Which vCPU.
        vcpu: u32,
        /// Which call.
        call: &'static str,
        /// What the system answered.
        source: kvm_ioctls::Error,
    },
}

impl Classified for BootError {
    fn class(&self) -> Class {
        match self {
            Self::NotAGuest(_) | Self::Load { .. } | Self::NoPvhEntry | Self::WildEntry { .. } => {
                Class::Mistake
            }
            Self::StartInfo(_) => Class::Fault,
            Self::Registers { source, .. } => Class::of_refused_ioctl(*source),
        }
    }
}

/// Puts the image's segments into low memory and returns its PVH entry.
///
/// # Errors
/// An image that is truncated, does not fit, or has no PVH entry inside low memory.
pub fn load(memory: &GuestRam, low_memory: u64, image: &[u8]) -> Result<Gpa, BootError> {
    elf::check(image)?;
    let loaded = Elf::load(memory, None, &mut Cursor::new(image), None)
        .map_err(|source| BootError::Load { low_memory, source })?;
    let PvhBootCapability::PvhEntryPresent(GuestAddress(entry)) = loaded.pvh_boot_cap else {
        return Err(BootError::NoPvhEntry);
    };
    if entry >= low_memory {
        return Err(BootError::WildEntry { entry, low_memory });
    }
    Ok(Gpa::new(entry))
}

/// Writes the start info and the memory map it points to.
///
/// # Errors
/// [`BootError::StartInfo`].
pub fn write_start_info(memory: &GuestRam, ram: &[GpaRange]) -> Result<(), BootError> {
    let map: Vec<_> = ram
        .iter()
        .map(|range| hvm_memmap_table_entry {
            addr: range.start().get(),
            size: range.len(),
            type_: RAM,
            reserved: 0,
        })
        .collect();
    let info = hvm_start_info {
        magic: START_MAGIC,
        version: 1,
        memmap_paddr: MEMORY_MAP_GPA,
        memmap_entries: map.len() as u32,
        ..hvm_start_info::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(START_INFO_GPA));
    params.set_sections(&map, GuestAddress(MEMORY_MAP_GPA));
    PvhBootConfigurator::write_bootparams(&params, memory).map_err(BootError::StartInfo)
}

/// Sets a vCPU to the PVH entry, its index in ESI.
///
/// # Errors
/// [`BootError::Registers`].
pub fn set_registers(fd: &VcpuFd, vcpu: u32, entry: Gpa) -> Result<(), BootError> {
    let failed = |call| move |source| BootError::Registers { vcpu, call, source };
    let sregs = fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    fd.set_sregs(&in_flat_segments(sregs)).map_err(failed("KVM_SET_SREGS"))?;
    fd.set_regs(&at_entry(vcpu, entry)).map_err(failed("KVM_SET_REGS"))
}

/// Protected mode without paging, as PVH demands it.
fn in_flat_segments(mut sregs: kvm_sregs) -> kvm_sregs {
    let segment = kvm_segment { limit: u32::MAX, present: 1, db: 1, s: 1, g: 1, ..kvm_segment::default() };
    // Code: execute, read, accessed. Data: read, write, accessed. Task: 32-bit, busy.
    sregs.cs = kvm_segment { selector: 0x08, type_: 0xb, ..segment };
    let data = kvm_segment { selector: 0x10, type_: 0x3, ..segment };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { selector: 0x18, type_: 0xb, limit: 0x67, present: 1, ..kvm_segment::default() };
    sregs.cr0 = 1; // PE
    sregs.cr4 = 0;
    sregs.efer = 0;
    sregs
}

fn at_entry(vcpu: u32, entry: Gpa) -> kvm_regs {
    kvm_regs {
        rip: entry.get(),
        rflags: 2,
        rbx: START_INFO_GPA,
        rdi: u64::from(layout::CONTROL_MAGIC),
        rsi: u64::from(vcpu),
        ..kvm_regs::default()
    }
}

#[cfg(test)]
mod tests {
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

    /// As `include/xen/interface/hvm/start_info.h` lays them out.
    #[test]
    fn the_start_info_leads_to_the_memory_map() {
        let memory = memory();
        let ram =
            [(0, LOW), (1 << 32, 2 << 20)].map(|(at, len)| GpaRange::with_len(Gpa::new(at), len).unwrap());
        write_start_info(&memory, &ram).unwrap();
        let half = |at: u64| u64::from(memory.read_obj::<u32>(GuestAddress(at)).unwrap());
        let word = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        assert_eq!((half(START_INFO_GPA), half(START_INFO_GPA + 4)), (0x336e_c578, 1));
        let (map, entries) = (word(START_INFO_GPA + 40), half(START_INFO_GPA + 48));
        assert_eq!(entries, 2);
        for (at, range) in (map..).step_by(24).zip(ram) {
            assert_eq!((word(at), word(at + 8), half(at + 16)), (range.start().get(), range.len(), 1));
        }
    }

    /// As Xen's `docs/misc/pvh.pandoc` demands it, from whatever state.
    #[test]
    fn a_vcpu_begins_in_flat_segments_without_paging() {
        let reset = kvm_sregs { cr0: 0x6000_0010, cr4: 0x20, efer: 0xd00, ..kvm_sregs::default() };
        let sregs = in_flat_segments(reset);
        assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (1, 0, 0));
        let what = |segment: &kvm_segment| {
            let kvm_segment { type_, present, dpl, db, s, l, g, .. } = *segment;
            (segment.base, segment.limit, [type_, present, dpl, db, s, l, g])
        };
        let data = (0, u32::MAX, [3, 1, 0, 1, 1, 0, 1]);
        assert_eq!(what(&sregs.cs), (0, u32::MAX, [11, 1, 0, 1, 1, 0, 1]));
        assert_eq!(
            [sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss].map(|segment| what(&segment)),
            [data; 5]
        );
        assert_eq!(what(&sregs.tr), (0, 0x67, [11, 1, 0, 0, 0, 0, 0]));
        // Selectors like those of a table: none is null, and each kind of segment has its own.
        assert_eq!([sregs.cs, sregs.ss, sregs.tr].map(|segment| segment.selector), [0x08, 0x10, 0x18]);

        let regs = at_entry(3, Gpa::new(0x10_0040));
        assert_eq!((regs.rip, regs.rflags, regs.rbx), (0x10_0040, 2, START_INFO_GPA));
        assert_eq!((regs.rdi, regs.rsi), (layout::CONTROL_MAGIC.into(), 3));
    }

    #[test]
    fn hostile_headers_are_errors_and_nothing_worse() {
        let guest = resources::GUEST;
        // What follows the last segment (symbols) is not loaded, and not missed.
        let word = |at: usize| u64::from_le_bytes(guest[at..at + 8].try_into().unwrap());
        let segments = (0..usize::from(guest[56])).map(|index| 64 + 56 * index);
        let loaded = segments.map(|header| word(header + 8) + word(header + 32)).max().unwrap() as usize;
        for cut in (64..loaded).step_by(997) {
            assert!(load(&memory(), LOW, &guest[..cut]).is_err(), "cut at {cut}");
        }
        // Every 8-byte field of the ELF header and the program headers, set to what a liar would choose.
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
