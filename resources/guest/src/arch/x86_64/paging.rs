//! The guest's page tables: the identity mapping beyond the first 4 GiB, which the stub's static tables cover, and
//! their own place in the secondary MMU.

use core::sync::atomic::{AtomicU64, Ordering};

const GIB: u64 = 1 << 30;
/// Gibibytes that this module can map: from 4 GiB up to the end of the largest arena, 64 GiB.
const DIRECTORIES: usize = 60;
/// Present, writable, user, accessed, dirty.
const TABLE: u64 = 0x27;
/// The same, and a 2 MiB page.
const PAGE_2M: u64 = 0xe7;

#[repr(C, align(4096))]
struct Directory([AtomicU64; 512]);

static MORE: [Directory; DIRECTORIES] =
    [const { Directory([const { AtomicU64::new(0) }; 512]) }; DIRECTORIES];

unsafe extern "C" {
    /// The stub's page directory pointer table.
    static pdpt: [AtomicU64; 512];
}

/// Makes `[0, end)` reachable. Only ever adds entries that were not present, which needs no TLB flush, and
/// writes each directory before the entry that leads to it; vCPUs that race write the same values.
pub fn map_up_to(end: u64) {
    for index in 4..end.div_ceil(GIB).min(4 + DIRECTORIES as u64) {
        // SAFETY: the stub defines the table; the static's type allows shared writes.
        let entry = unsafe { &pdpt[index as usize] };
        if entry.load(Ordering::Acquire) != 0 {
            continue;
        }
        let directory = &MORE[index as usize - 4];
        for (slot, page) in directory.0.iter().zip(0u64..) {
            slot.store((index * GIB + (page << 21)) | PAGE_2M, Ordering::Relaxed);
        }
        entry.store(core::ptr::from_ref(directory) as u64 | TABLE, Ordering::Release);
    }
}

/// Reads each page of the tables in use, so that it is not a touch of the order that follows whose fault they are.
///
/// Under two-dimensional paging (EPT, NPT) the walk of the guest's tables is itself an access to guest memory: where a
/// range has dropped the translation of a table's page, the next walk through it faults once more than the touch
/// that caused it. Under shadow paging KVM reads the tables for the guest, and such a fault is there only if the
/// guest looks at them, as here.
pub fn warm() {
    // SAFETY: the stub defines the table; the static's type allows shared access.
    let entries = unsafe { &pdpt };
    for entry in &entries[..4 + DIRECTORIES] {
        let directory = entry.load(Ordering::Acquire) & !0xfff;
        if directory != 0 {
            // SAFETY: present entries lead to directories in the image, which is identity mapped. Volatile, for the
            // access and not the value.
            unsafe { (directory as *const u64).read_volatile() };
        }
    }
}
