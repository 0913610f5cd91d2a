//! What a guest says about its memory.

use crate::virtio::queue::{Buffer, copy_from, total_len};
use guest::GuestRam;

/// Bytes of one statistic: a tag of 16 bits and a value of 64.
const ENTRY: u64 = 10;
/// Most statistics taken from one buffer: Linux knows 16.
const MOST: u64 = 64;

/// The known statistics, in order of their tags, by the names of the specification.
pub const STAT_NAMES: [&str; 16] = [
    "swap_in",
    "swap_out",
    "major_faults",
    "minor_faults",
    "free_memory",
    "total_memory",
    "available_memory",
    "disk_caches",
    "hugetlb_allocations",
    "hugetlb_failures",
    "oom_kill",
    "alloc_stall",
    "async_scan",
    "direct_scan",
    "async_reclaim",
    "direct_reclaim",
];

/// One statistic: its place in [`STAT_NAMES`] is its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Stat {
    /// Bytes swapped in.
    SwapIn,
    /// Bytes swapped out.
    SwapOut,
    /// Page faults that needed I/O.
    MajorFaults,
    /// Page faults that did not.
    MinorFaults,
    /// Bytes unused.
    FreeMemory,
    /// Bytes in all.
    TotalMemory,
    /// Bytes that could be used without pushing anything to swap.
    AvailableMemory,
    /// Bytes that could be reclaimed without I/O.
    DiskCaches,
    /// Successful hugetlb allocations.
    HugetlbAllocations,
    /// Failed hugetlb allocations.
    HugetlbFailures,
    /// Processes killed for want of memory.
    OomKill,
    /// Allocations that had to wait.
    AllocStall,
    /// Pages scanned by the guest's kswapd.
    AsyncScan,
    /// Pages scanned by those who allocate.
    DirectScan,
    /// Pages reclaimed by the guest's kswapd.
    AsyncReclaim,
    /// Pages reclaimed by those who allocate.
    DirectReclaim,
}

/// One answer of a guest. What it does not mention is unknown, not zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BalloonStats {
    known: [Option<u64>; STAT_NAMES.len()],
    /// Tags that nobody knew when this was written, with their values.
    pub unknown: Vec<(u16, u64)>,
    /// The buffer did not end where a statistic ends, or lay outside of RAM, or was too long.
    pub malformed: bool,
}

impl BalloonStats {
    /// The value of a statistic, if the guest gave one.
    pub fn get(&self, stat: Stat) -> Option<u64> {
        self.known[stat as usize]
    }

    /// Each known statistic that the guest gave, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + use<'_> {
        STAT_NAMES.into_iter().zip(self.known).filter_map(|(name, value)| Some((name, value?)))
    }

    /// Reads what lies in a buffer.
    pub(super) fn read(memory: &GuestRam, buffers: &[Buffer]) -> Self {
        let len = total_len(buffers);
        let mut stats =
            Self { malformed: !len.is_multiple_of(ENTRY) || len > MOST * ENTRY, ..Self::default() };
        for at in (0..(len / ENTRY).min(MOST)).map(|index| index * ENTRY) {
            let mut entry = [0u8; ENTRY as usize];
            if copy_from(memory, buffers, at, &mut entry).is_none() {
                stats.malformed = true;
                break;
            }
            let [tag_low, tag_high, value @ ..] = entry;
            stats.put(u16::from_le_bytes([tag_low, tag_high]), u64::from_le_bytes(value));
        }
        stats
    }

    fn put(&mut self, tag: u16, value: u64) {
        match self.known.get_mut(usize::from(tag)) {
            Some(known) => *known = Some(value),
            None => self.unknown.push((tag, value)),
        }
    }
}
