//! Where this process's pages lie: `/proc/self/pagemap` and `/proc/self/smaps`.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

const PATH: &str = "/proc/self/pagemap";
const PRESENT: u64 = 1 << 63;
const PFN: u64 = (1 << 55) - 1;
/// Entries read at once.
const CHUNK: usize = 4096;

/// Calls `each` with the index and the frame number of every page of `count` from `base`; `None` for one that is not
/// there.
pub fn frames(base: *const u8, count: usize, mut each: impl FnMut(usize, Option<u64>)) -> Result<()> {
    let failed = || format!("{PATH} cannot be read");
    let file = File::open(PATH).with_context(failed)?;
    let mut buffer = vec![0; 8 * CHUNK.min(count)];
    let first = base as u64 / 4096;
    for start in (0..count).step_by(CHUNK) {
        let buffer = &mut buffer[..8 * CHUNK.min(count - start)];
        file.read_exact_at(buffer, 8 * (first + start as u64)).with_context(failed)?;
        for (index, entry) in buffer.as_chunks::<8>().0.iter().enumerate() {
            let entry = u64::from_le_bytes(*entry);
            each(start + index, (entry & PRESENT != 0).then_some(entry & PFN));
        }
    }
    Ok(())
}

/// Bytes that huge pages map in `range` of this process's addresses.
pub fn huge_bytes(range: Range<u64>) -> Result<u64> {
    let text = fs::read_to_string("/proc/self/smaps").context("/proc/self/smaps cannot be read")?;
    Ok(huge_kib(&text, &range) * 1024)
}

fn huge_kib(smaps: &str, range: &Range<u64>) -> u64 {
    let mut inside = false;
    let mut sum = 0;
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-') {
            if let (Ok(start), Ok(end)) = (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16)) {
                inside = range.start <= start && end <= range.end;
            }
        } else if inside && first == "AnonHugePages:" {
            sum += line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_counted_in_the_range_alone() {
        let smaps = "7f0000200000-7f0000600000 rw-p 00000000 00:00 0 \nSize: 4096 kB\nAnonHugePages:      2048 kB\n\
                     7f0000600000-7f0000a00000 rw-p 00000000 00:00 0 \nAnonHugePages:      4096 kB\n\
                     7f0000a00000-7f0000c00000 rw-p 00000000 00:00 0 [anon]\nAnonHugePages:      2048 kB\n";
        assert_eq!(huge_kib(smaps, &(0x7f00_0020_0000..0x7f00_00a0_0000)), 6144);
        assert_eq!(huge_kib(smaps, &(0x7f00_0000_0000..0x7f00_0020_0000)), 0);
    }

    #[test]
    fn a_page_is_there_once_it_was_touched() {
        let rights = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
        let flags = rustix::mm::MapFlags::PRIVATE;
        // SAFETY: a fresh mapping, which nothing else refers to; it stays to the end of the process.
        let base = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), 3 * 4096, rights, flags) };
        let base = base.unwrap().cast::<u8>();
        // SAFETY: the second page of the mapping.
        unsafe { base.wrapping_add(4096).write_volatile(1) };
        let mut there = Vec::new();
        frames(base, 3, |index, pfn| there.push((index, pfn.is_some()))).unwrap();
        assert_eq!(there, [(0, false), (1, true), (2, false)]);
    }
}
