//! What a vCPU needs in memory to begin in long mode: a GDT as the boot protocol demands it, and page tables that
//! map the first 4 GiB to themselves.

use guest_mem::{Gpa, PAGE_SIZE, PMD_SIZE};
use kvm_bindings::kvm_segment;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout::{GDT, PAGE_TABLES};
use guest::GuestRam;

/// `__BOOT_CS`.
pub const BOOT_CS: u16 = 0x10;
/// `__BOOT_DS`.
pub const BOOT_DS: u16 = 0x18;
/// The task register's; it takes two entries.
pub const BOOT_TR: u16 = 0x20;

/// The GDT: two that are never used, 64-bit code, flat data, a 64-bit task.
pub const ENTRIES: [u64; 6] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067, 0];

const DIRECTORIES: u64 = 4;
const PRESENT_WRITABLE: u64 = 0x3;
const LARGE: u64 = 0x80;
const ENTRIES_PER_TABLE: u64 = 512;

/// Where the top of the page tables lies: CR3.
pub const CR3: Gpa = PAGE_TABLES;

/// Writes GDT and page tables to their places.
pub fn write(memory: &GuestRam) -> Result<(), GuestMemoryError> {
    let put = |at: u64, entry: u64| memory.write_obj(entry, GuestAddress(at));
    for (at, entry) in (GDT.get()..).step_by(8).zip(ENTRIES) {
        put(at, entry)?;
    }
    let pml4 = PAGE_TABLES.get();
    let pdpt = pml4 + PAGE_SIZE;
    let directories = pdpt + PAGE_SIZE;
    put(pml4, pdpt | PRESENT_WRITABLE)?;
    for index in 0..DIRECTORIES {
        put(pdpt + 8 * index, (directories + PAGE_SIZE * index) | PRESENT_WRITABLE)?;
    }
    for index in 0..DIRECTORIES * ENTRIES_PER_TABLE {
        put(directories + 8 * index, (PMD_SIZE * index) | LARGE | PRESENT_WRITABLE)?;
    }
    Ok(())
}

/// The segment register that loading `selector` from [`ENTRIES`] gives.
pub fn segment(selector: u16) -> kvm_segment {
    let entry = ENTRIES[usize::from(selector / 8)];
    let bits = |shift: u32, count: u32| (entry >> shift) & ((1 << count) - 1);
    let limit = (bits(0, 16) | bits(48, 4) << 16) as u32;
    let granular = bits(55, 1) == 1;
    kvm_segment {
        base: bits(16, 24) | bits(56, 8) << 24,
        limit: if granular { limit << 12 | 0xfff } else { limit },
        selector,
        type_: bits(40, 4) as u8,
        s: bits(44, 1) as u8,
        dpl: bits(45, 2) as u8,
        present: bits(47, 1) as u8,
        avl: bits(52, 1) as u8,
        l: bits(53, 1) as u8,
        db: bits(54, 1) as u8,
        g: u8::from(granular),
        ..kvm_segment::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks the tables as a processor does.
    fn translate(memory: &GuestRam, address: u64) -> Option<u64> {
        let mut table = CR3.get();
        for shift in [39, 30, 21] {
            let index = address >> shift & 0x1ff;
            let entry: u64 = memory.read_obj(GuestAddress(table + 8 * index)).unwrap();
            if entry & 1 == 0 {
                return None;
            }
            let next = entry & 0x000f_ffff_ffff_f000;
            if entry & LARGE != 0 {
                return Some(next | address & ((1 << shift) - 1));
            }
            table = next;
        }
        None
    }

    #[test]
    fn the_first_4_gib_are_mapped_to_themselves() {
        let memory = GuestRam::mapped(&[(0, 1 << 20)]);
        write(&memory).unwrap();
        for address in (0..4 << 30_u64).step_by(0x1f_f123) {
            assert_eq!(translate(&memory, address), Some(address));
        }
        assert_eq!(translate(&memory, 0xffff_ffff), Some(0xffff_ffff));
        assert_eq!(translate(&memory, 4 << 30), None);
    }

    #[test]
    fn the_segments_are_what_the_boot_protocol_demands() {
        let (code, data, task) = (segment(BOOT_CS), segment(BOOT_DS), segment(BOOT_TR));
        assert_eq!(
            (code.selector, code.l, code.db, code.s, code.present, code.type_),
            (0x10, 1, 0, 1, 1, 0xb)
        );
        assert_eq!((data.selector, data.db, data.s, data.present, data.type_), (0x18, 1, 1, 1, 3));
        for flat in [code, data] {
            assert_eq!((flat.base, flat.limit, flat.g, flat.dpl), (0, u32::MAX, 1, 0));
        }
        assert_eq!((task.s, task.type_, task.limit, task.present), (0, 0xb, 0x67, 1));
    }

    #[test]
    fn memory_that_ends_too_early_is_an_error() {
        let memory = GuestRam::mapped(&[(0, 0xa000)]);
        assert!(write(&memory).is_err());
    }
}
