//! The identity mapping beyond the first 4 GiB, which the stub's static tables cover.

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
