//! A guest's memory, by the mappings of the process that holds its VM.
//!
//! The memslots of another process's VM cannot be read: the ioctls of a VM are refused to other processes. So the guest's
//! memory is guessed: large writable mappings that are not a file on a disk, a stack or a heap.

use guest_mem::{Hva, HvaRange};

use program::output::visible;

/// The smallest private mapping that is taken for a guest's memory: thread stacks and heaps are smaller.
const LEAST_PRIVATE: u64 = 16 << 20;
/// The smallest shared mapping that is.
const LEAST_SHARED: u64 = 2 << 20;
/// The limit on mappings that are watched: the largest ones.
const MOST: usize = 16;

/// A mapping that is probably a guest's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Its addresses in the holder.
    pub range: HvaRange,
    /// Whether the mapping is shared.
    pub shared: bool,
    /// Its name in `/proc/PID/maps`; empty for private memory without a name.
    pub name: String,
}

/// Addresses of `--memory` at which nothing is mapped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nothing is mapped at {:x}-{:x}; {}", hole.start().get(), hole.end().get(), nearest(.near))]
pub struct NotMapped {
    /// The first unmapped part of them.
    pub hole: HvaRange,
    /// The nearest mapping; `None` if the process has none.
    pub near: Option<Memory>,
}

fn nearest(near: &Option<Memory>) -> String {
    match near {
        Some(Memory { range, name, .. }) => {
            let name = if name.is_empty() { "which has no name" } else { name };
            format!("the nearest mapping is {:x}-{:x}, {name}", range.start().get(), range.end().get())
        }
        None => "the process has no mapping".to_owned(),
    }
}

/// The mappings of `/proc/PID/maps` that are probably a guest's memory, lowest first.
pub fn guest_memory(maps: &str) -> Vec<Memory> {
    let may_be_a_guests = |mapping: &Mapping| mapping.writable && is_memory(&mapping.memory.name);
    let candidates = maps.lines().filter_map(parse).filter(may_be_a_guests).map(|mapping| mapping.memory);
    let mut found: Vec<Memory> = Vec::new();
    for memory in candidates {
        match found.last_mut() {
            // The kernel may split one mapping into several.
            Some(last)
                if last.range.end() == memory.range.start()
                    && last.shared == memory.shared
                    && last.name == memory.name =>
            {
                last.range = last.range.hull(memory.range);
            }
            _ => found.push(memory),
        }
    }
    found.retain(|memory| memory.range.len() >= if memory.shared { LEAST_SHARED } else { LEAST_PRIVATE });
    found.sort_by_key(|memory| std::cmp::Reverse(memory.range.len()));
    found.truncate(MOST);
    found.sort_by_key(|memory| memory.range.start());
    found
}

/// The memory at these addresses, described as the mapping in which they begin.
///
/// # Errors
/// A part of them is not mapped, where no range is ever announced.
pub fn named(maps: &str, range: HvaRange) -> Result<Memory, NotMapped> {
    let mappings: Vec<Memory> = maps.lines().filter_map(parse).map(|mapping| mapping.memory).collect();
    let mut rest = range;
    let mut found = None;
    for memory in mappings.iter().filter(|memory| memory.range.overlaps(range)) {
        if memory.range.start() > rest.start() {
            break;
        }
        found.get_or_insert_with(|| Memory { range, ..memory.clone() });
        rest = HvaRange::new(memory.range.end(), range.end()).unwrap_or(HvaRange::empty(range.end()));
    }
    match found {
        Some(found) if rest.is_empty() => Ok(found),
        _ => Err(not_mapped(&mappings, rest)),
    }
}

/// `rest` begins where nothing is mapped.
fn not_mapped(mappings: &[Memory], rest: HvaRange) -> NotMapped {
    let (start, end) = (rest.start().get(), rest.end().get());
    let next = mappings.iter().map(|memory| memory.range.start()).find(|next| *next > rest.start());
    let hole = next.and_then(|next| HvaRange::new(rest.start(), next.min(rest.end()))).unwrap_or(rest);
    let distance = |memory: &&Memory| {
        let (from, to) = (memory.range.start().get(), memory.range.end().get());
        from.saturating_sub(end).max(start.saturating_sub(to))
    };
    NotMapped { hole, near: mappings.iter().min_by_key(distance).cloned() }
}

/// The addresses of a line of `/proc/PID/maps` or `smaps` that begins a mapping.
pub fn mapping_of(line: &str) -> Option<HvaRange> {
    parse(line).map(|mapping| mapping.memory.range)
}

/// Whether its pages can only leave to swap, and not to a file on a disk.
pub fn needs_swap(memory: &Memory) -> bool {
    is_memory(&memory.name) || memory.name.starts_with('[')
}

/// A line of `/proc/PID/maps`.
struct Mapping {
    memory: Memory,
    writable: bool,
}

/// `START-END PERMISSIONS OFFSET DEVICE INODE NAME`.
fn parse(line: &str) -> Option<Mapping> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok().map(Hva::new);
    let range = HvaRange::new(address(start)?, address(end)?)?;
    let permissions = words.next()?;
    let (_offset, _device, _inode) = (words.next()?, words.next()?, words.next()?);
    let name = visible::line(&words.collect::<Vec<_>>().join(" ")).into_owned();
    let whole = range.start().get().is_multiple_of(guest_mem::PAGE_SIZE)
        && range.len().is_multiple_of(guest_mem::PAGE_SIZE);
    let memory = Memory { range, shared: permissions.ends_with('s'), name };
    whole.then_some(Mapping { memory, writable: permissions.starts_with("rw") })
}

fn is_memory(name: &str) -> bool {
    let files = [
        "/memfd:",
        "/dev/zero",
        "/dev/shm/",
        "/dev/hugepages",
        "/anon_hugepage",
        "/SYSV",
        "[anon:",
        "[anon_shmem:",
    ];
    name.is_empty() || files.iter().any(|file| name.starts_with(file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn large_writable_mappings_are_a_guests_memory() {
        let maps = "\
            55d0c0000000-55d0c8000000 rw-p 00000000 00:00 0                          [heap]\n\
            7f0000000000-7f0008000000 rw-p 00000000 00:00 0 \n\
            7f0008000000-7f0010000000 rw-p 00000000 00:00 0 \n\
            7f1000000000-7f1000800000 rw-p 00000000 00:00 0 \n\
            7f2000000000-7f2000400000 rw-s 00000000 00:01 1042                       /memfd:guest ram (deleted)\n\
            7f3000000000-7f3010000000 r--p 00000000 fe:00 77                         /usr/share/image\n\
            7f4000000000-7f4010000000 ---p 00000000 00:00 0 \n\
            7f5000000000-7f5010000000 rw-s 00000000 fe:00 78                         /home/disk.img\n";
        let found = guest_memory(maps);
        let seen: Vec<_> =
            found.iter().map(|m| (m.range.start().get(), m.range.len() >> 20, m.shared)).collect();
        assert_eq!(seen, [(0x7f00_0000_0000, 256, false), (0x7f20_0000_0000, 4, true)]);
        assert_eq!(found[1].name, "/memfd:guest ram (deleted)");
    }

    const MAPS: &str = "\
        10000000-10010000 rw-p 00000000 00:00 0                          [heap]\n\
        7f0000000000-7f0000200000 rw-p 00000000 00:00 0 \n\
        7f0000200000-7f0000400000 r--s 00000000 00:01 1042               /memfd:guest ram (deleted)\n\
        7f0000800000-7f0000a00000 rw-p 00000000 fe:00 77                 /usr/share/image\n";

    fn at(start: u64, end: u64) -> HvaRange {
        HvaRange::new(Hva::new(start), Hva::new(end)).unwrap()
    }

    #[test]
    fn addresses_are_described_as_their_mapping() {
        let found = named(MAPS, at(0x7f00_0010_0000, 0x7f00_0030_0000)).unwrap();
        assert_eq!((found.range.len(), found.shared, found.name.as_str()), (2 << 20, false, ""));
        let found = named(MAPS, at(0x7f00_0020_0000, 0x7f00_0040_0000)).unwrap();
        assert_eq!((found.shared, found.name.as_str()), (true, "/memfd:guest ram (deleted)"));
        assert!(needs_swap(&found));
        assert!(!needs_swap(&named(MAPS, at(0x7f00_0080_0000, 0x7f00_0080_1000)).unwrap()));
    }

    #[test]
    fn unmapped_addresses_are_refused_with_the_nearest_mapping() {
        for (range, hole, near) in [
            (at(0x1000, 0x2000), at(0x1000, 0x2000), "10000000-10010000, [heap]"),
            (at(0x1000, 0x1001_0000), at(0x1000, 0x1000_0000), "10000000-10010000, [heap]"),
            (
                at(0x7f00_0030_0000, 0x7f00_0090_0000),
                at(0x7f00_0040_0000, 0x7f00_0080_0000),
                "7f0000200000-7f0000400000, /memfd:guest ram",
            ),
            (
                at(0x7f00_0048_0000, 0x7f00_0050_0000),
                at(0x7f00_0048_0000, 0x7f00_0050_0000),
                "7f0000200000-7f0000400000",
            ),
            (
                at(0x7f00_0090_0000, 0x7f00_00b0_0000),
                at(0x7f00_00a0_0000, 0x7f00_00b0_0000),
                "7f0000800000-7f0000a00000, /usr/share/image",
            ),
        ] {
            let refused = named(MAPS, range).unwrap_err();
            assert_eq!(refused.hole, hole);
            assert!(refused.to_string().contains(near), "{refused}");
        }
        assert_eq!(named("", at(0x1000, 0x2000)).unwrap_err().near, None);
    }

    proptest! {
        /// The result is in order of address and within the limit, whatever the text.
        #[test]
        fn any_text_is_read(text in "([0-9a-f]{1,17}-[0-9a-f]{1,17} rw-[ps] 0 0 0[ a-z/]{0,9}\n){0,30}|.{0,200}") {
            let found = guest_memory(&text);
            prop_assert!(found.len() <= MOST);
            prop_assert!(found.windows(2).all(|pair| pair[0].range.start() <= pair[1].range.start()));
        }
    }
}
