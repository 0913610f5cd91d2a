//! The memory map that the guest is given, in the form that E820 and PVH share.

use guest_mem::{Gpa, GpaRange};

use super::layout::{ACPI_START, HIGH_RAM_START, LOW_RAM_END};
use crate::Platform;

/// What a range is. The numbers are E820's, and PVH's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// RAM.
    Ram = 1,
    /// Not RAM for the guest; drivers that know its content may use it.
    Reserved = 2,
}

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The addresses it speaks of.
    pub range: GpaRange,
    /// What is there.
    pub kind: Kind,
}

/// The map of a platform: its RAM, less the hole below 1 MiB, in which the ACPI tables are reserved.
pub fn memory_map(platform: &Platform) -> Vec<Entry> {
    let range = |start: Gpa, end: Gpa| GpaRange::new(start, end).unwrap_or(GpaRange::empty(start));
    let below = range(Gpa::new(0), LOW_RAM_END);
    let above = range(HIGH_RAM_START, Gpa::new(u64::MAX));
    let mut map: Vec<Entry> = platform
        .memory
        .iter()
        .flat_map(|piece| [below, above].into_iter().filter_map(|part| piece.range.intersection(part)))
        .map(|range| Entry { range, kind: Kind::Ram })
        .collect();
    map.push(Entry { range: range(ACPI_START, HIGH_RAM_START), kind: Kind::Reserved });
    map.sort_by_key(|entry| entry.range.start());
    map
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::layout::{arena_node, node0};
    use super::*;

    proptest! {
        #[test]
        fn every_address_is_what_the_platform_says(
            sizes in (1u64..(8 << 30), 1u64..(8 << 30)),
            probes in prop::collection::vec(0u64..(20 << 30), 200),
            low in prop::collection::vec(0u64..(2 << 20), 50),
        ) {
            let mut memory = node0(sizes.0).unwrap();
            memory.push(arena_node(&memory, sizes.1, 1).unwrap());
            let platform = Platform { vcpus: 1, memory, virtio: Vec::new() };
            let map = memory_map(&platform);
            prop_assert!(map.windows(2).all(|pair| pair[0].range.end() <= pair[1].range.start()));
            for at in probes.into_iter().chain(low) {
                let ram = platform.memory.iter().any(|piece| piece.range.contains(Gpa::new(at)));
                let naive = match at {
                    0xe_0000..0x10_0000 => Some(Kind::Reserved),
                    0xa_0000..0xe_0000 => None,
                    _ => ram.then_some(Kind::Ram),
                };
                let entry = map.iter().find(|entry| entry.range.contains(Gpa::new(at)));
                prop_assert_eq!(entry.map(|entry| entry.kind), naive, "at {:#x}", at);
            }
        }
    }
}
