//! The memory map of the PVH start info (Xen's `hvm_start_info`, version 1).

/// Offset of the memory map's address in the start info.
const MEMMAP_ADDRESS: usize = 40;
/// Offset of its number of entries.
const MEMMAP_ENTRIES: usize = 48;
/// The start info's magic, "xEn3" with the top bit of the E set.
const MAGIC: u32 = 0x336e_c578;
/// Bytes of one entry: address, length, type, reserved.
const ENTRY_BYTES: usize = 24;
/// Type of usable RAM.
const RAM: u32 = 1;

/// The largest piece of usable RAM in `[low, high)`, as start and length; `None` without a version 1 start
/// info or such RAM.
pub fn largest_ram(start_info: u32, low: u64, high: u64) -> Option<(u64, u64)> {
    let base = start_info as usize;
    if base == 0 || read::<u32>(base) != MAGIC || read::<u32>(base + 4) < 1 {
        return None;
    }
    let table = read::<u64>(base + MEMMAP_ADDRESS) as usize;
    let entries = read::<u32>(base + MEMMAP_ENTRIES).min(128) as usize;
    (0..entries)
        .map(|index| table + index * ENTRY_BYTES)
        .filter(|&entry| read::<u32>(entry + 16) == RAM)
        .filter_map(|entry| {
            let (start, len) = (read::<u64>(entry), read::<u64>(entry + 8));
            let (from, to) = (start.max(low), start.saturating_add(len).min(high));
            (from < to).then(|| (from, to - from))
        })
        .max_by_key(|&(_, len)| len)
}

fn read<T: Copy>(address: usize) -> T {
    // SAFETY: the start info and its table lie in the first 4 GiB, all of which are mapped; the types used
    // are integers, and unaligned is allowed for.
    unsafe { (address as *const T).read_unaligned() }
}
