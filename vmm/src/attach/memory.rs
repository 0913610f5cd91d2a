//! A guest's memory, as far as its holder's mappings tell.
//!
//! The memslots of another process's VM cannot be read: the ioctls of a VM answer the process that made it alone. What is
//! left are its mappings: large ones that can be written to and are no file on a disk, stack or heap.

use guest_mem::{Hva, HvaRange};

/// The least that private memory must have to be taken for a guest's: thread stacks and heaps have less.
const LEAST_PRIVATE: u64 = 16 << 20;
/// The same of shared memory, which few things but guests have.
const LEAST_SHARED: u64 = 2 << 20;
/// The most mappings that are watched, the largest ones.
const MOST: usize = 16;

/// Memory that is a guest's, probably.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Where, in its holder.
    pub range: HvaRange,
    /// Whether others may map it too.
    pub shared: bool,
    /// What it is called in `/proc/PID/maps`; empty for private memory without a name.
    pub name: String,
}

/// What of `/proc/PID/maps` is a guest's memory, probably: lowest first.
pub fn guest_memory(maps: &str) -> Vec<Memory> {
    let mut found: Vec<Memory> = Vec::new();
    for mapping in maps.lines().filter_map(parse) {
        match found.last_mut() {
            // One mapping of the guest's may be many of the kernel's.
            Some(last)
                if last.range.end() == mapping.range.start()
                    && last.shared == mapping.shared
                    && last.name == mapping.name =>
            {
                last.range = last.range.hull(mapping.range);
            }
            _ => found.push(mapping),
        }
    }
    found.retain(|memory| memory.range.len() >= if memory.shared { LEAST_SHARED } else { LEAST_PRIVATE });
    found.sort_by_key(|memory| std::cmp::Reverse(memory.range.len()));
    found.truncate(MOST);
    found.sort_by_key(|memory| memory.range.start());
    found
}

/// A line, `START-END PERMISSIONS OFFSET DEVICE INODE NAME`, if it may be a guest's memory.
fn parse(line: &str) -> Option<Memory> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok().map(Hva::new);
    let range = HvaRange::new(address(start)?, address(end)?)?;
    let permissions = words.next()?;
    let (_offset, _device, _inode) = (words.next()?, words.next()?, words.next()?);
    let name = words.collect::<Vec<_>>().join(" ");
    let shared = permissions.ends_with('s');
    let whole = range.start().get().is_multiple_of(guest_mem::PAGE_SIZE)
        && range.len().is_multiple_of(guest_mem::PAGE_SIZE);
    (whole && permissions.starts_with("rw") && is_memory(&name)).then_some(Memory { range, shared, name })
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
    fn large_writable_memory_is_a_guests() {
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

    proptest! {
        /// Whatever stands there, what is found is in order, apart, and not too much.
        #[test]
        fn any_text_is_read(text in "([0-9a-f]{1,17}-[0-9a-f]{1,17} rw-[ps] 0 0 0[ a-z/]{0,9}\n){0,30}|.{0,200}") {
            let found = guest_memory(&text);
            prop_assert!(found.len() <= MOST);
            prop_assert!(found.windows(2).all(|pair| pair[0].range.start() <= pair[1].range.start()));
        }
    }
}
