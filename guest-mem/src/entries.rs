//! Page state for kernels before 6.7: the 8-byte entries of pagemap, and `smaps` for huge mappings.

use std::fs::File;

use crate::address::{Address, Hva, PAGES_PER_PMD, PMD_SIZE};
use crate::entry::{Entry, entries, read_entries};
use crate::kpageflags::KPageFlags;
use crate::range::HvaRange;
use crate::scan_error::ScanError;
use crate::state::{PageRun, PageState, push_run};
use crate::victim::MapLevel;

/// One mapping in `smaps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapping {
    range: HvaRange,
    /// Bytes mapped by PMD entries.
    huge: u64,
    hugetlb: bool,
}

/// Reads page state from entries. See [`crate::ScanMethod::Entries`] for what it cannot know.
#[derive(Debug)]
pub(crate) struct EntryReader {
    kpageflags: KPageFlags,
    buffer: Vec<u8>,
}

impl EntryReader {
    pub(crate) fn new() -> Self {
        Self { kpageflags: KPageFlags::open(), buffer: Vec::new() }
    }

    pub(crate) fn page(&mut self, pagemap: &File, page: HvaRange) -> Result<PageState, ScanError> {
        let mut runs = Vec::with_capacity(1);
        self.scan(pagemap, page, &mut runs)?;
        Ok(runs.first().map_or(PageState::Absent, |run| run.state))
    }

    pub(crate) fn scan(
        &mut self,
        pagemap: &File,
        range: HvaRange,
        out: &mut Vec<PageRun>,
    ) -> Result<(), ScanError> {
        let file = "/proc/self/smaps";
        let smaps =
            std::fs::read_to_string(file).map_err(|source| ScanError::Read { file, range, source })?;
        let mut at = range.start();
        for mapping in parse_smaps(&smaps).into_iter().filter(|mapping| mapping.range.overlaps(range)) {
            let inside = mapping.range.intersection(range).expect("it overlaps");
            push_run(out, HvaRange::new(at, inside.start()).expect("smaps is sorted"), PageState::Absent);
            let promoted =
                if mapping.hugetlb { Vec::new() } else { self.pmd_mapped_blocks(pagemap, mapping)? };
            for block in inside.block_pieces() {
                let is_promoted = || promoted.binary_search(&block.start().align_down(PMD_SIZE)).is_ok();
                let level = if mapping.hugetlb || is_promoted() { MapLevel::Pmd } else { MapLevel::Pte };
                self.scan_block(pagemap, block, level, out)?;
            }
            at = inside.end();
        }
        push_run(out, HvaRange::new(at, range.end()).expect("inside the range"), PageState::Absent);
        Ok(())
    }

    fn scan_block(
        &mut self,
        pagemap: &File,
        block: HvaRange,
        level: MapLevel,
        out: &mut Vec<PageRun>,
    ) -> Result<(), ScanError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let read = read_entries(pagemap, block, &mut buffer);
        for (page, entry) in block.pages().zip(entries(&buffer)) {
            let state = if entry.is_present() {
                let zero = entry.pfn().is_some_and(|pfn| self.kpageflags.is_zero_page(pfn));
                if zero { PageState::Zero(level) } else { PageState::Mapped { level, file: entry.is_file() } }
            } else if entry.is_swapped() {
                PageState::Swapped
            } else {
                PageState::Absent
            };
            push_run(out, page, state);
        }
        self.buffer = buffer;
        read
    }

    /// The start addresses, sorted, of the 2 MiB blocks of a mapping that PMD entries map: all or none of those that
    /// could be.
    fn pmd_mapped_blocks(&mut self, pagemap: &File, mapping: Mapping) -> Result<Vec<Hva>, ScanError> {
        let (mut certain, mut candidates) = (Vec::new(), Vec::new());
        let mut buffer = std::mem::take(&mut self.buffer);
        for block in mapping.range.block_pieces().filter(|block| block.len() == PMD_SIZE) {
            read_entries(pagemap, block, &mut buffer)?;
            if !could_be_pmd_mapped(entries(&buffer)) {
                continue;
            }
            // 512 frames of the huge zero page are never mapped one by one, and smaps does not count them.
            let head = entries(&buffer).next().and_then(Entry::pfn);
            if head.is_some_and(|pfn| self.kpageflags.is_zero_page(pfn)) {
                certain.push(block.start());
            } else {
                candidates.push(block.start());
            }
        }
        self.buffer = buffer;
        if candidates.len() as u64 * PMD_SIZE == mapping.huge {
            certain.append(&mut candidates);
            certain.sort_unstable();
        }
        Ok(certain)
    }
}

/// Whether 512 entries could lie under one PMD entry: all present and, where frames are shown, one aligned
/// run of them.
fn could_be_pmd_mapped(entries: impl ExactSizeIterator<Item = Entry>) -> bool {
    if entries.len() as u64 != PAGES_PER_PMD {
        return false;
    }
    let mut first = None;
    for (index, entry) in entries.enumerate() {
        if !entry.is_present() {
            return false;
        }
        let Some(pfn) = entry.pfn() else { continue };
        let head = *first.get_or_insert(pfn);
        if head % PAGES_PER_PMD != 0 || pfn != head + index as u64 {
            return false;
        }
    }
    true
}

fn parse_smaps(text: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        if let Some(range) = parse_header(line) {
            mappings.push(Mapping { range, huge: 0, hugetlb: false });
            continue;
        }
        let (Some(mapping), Some((key, value))) = (mappings.last_mut(), line.split_once(':')) else {
            continue;
        };
        match key {
            "AnonHugePages" | "ShmemPmdMapped" | "FilePmdMapped" => {
                mapping.huge += parse_kib(value).unwrap_or(0);
            }
            "VmFlags" => mapping.hugetlb = value.split_whitespace().any(|flag| flag == "ht"),
            _ => {}
        }
    }
    mappings
}

/// `7f0000000000-7f0000200000 rw-p …`
fn parse_header(line: &str) -> Option<HvaRange> {
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok().map(Hva::new);
    HvaRange::new(hex(start)?, hex(end)?)
}

/// `   2048 kB`
fn parse_kib(value: &str) -> Option<u64> {
    value.trim().trim_end_matches("kB").trim_end().parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0000400000 rw-p 00000000 00:00 0
Size:               4096 kB
AnonHugePages:      2048 kB
ShmemPmdMapped:        0 kB
FilePmdMapped:         0 kB
VmFlags: rd wr mr mw me ac sd hg
7f0000600000-7f0000800000 rw-p 00000000 00:0f 1  /anon_hugepage (deleted)
Size:               2048 kB
AnonHugePages:         0 kB
VmFlags: rd wr mr mw me de ht sd
";

    #[test]
    fn smaps_gives_ranges_and_huge_bytes() {
        let mappings = parse_smaps(SMAPS);
        assert_eq!(mappings.len(), 2);
        assert_eq!(mappings[0].range.start(), Hva::new(0x7f00_0000_0000));
        assert_eq!((mappings[0].huge, mappings[0].hugetlb), (2 << 20, false));
        assert!(mappings[1].hugetlb);
    }

    #[test]
    fn entries_show_frames_only_where_there_are_any() {
        assert_eq!(Entry(1 << 63 | 0x123).pfn(), Some(0x123));
        assert_eq!(Entry(1 << 63).pfn(), None);
        assert_eq!(Entry(1 << 62 | 0x123).pfn(), None);
    }

    #[test]
    fn a_pmd_needs_512_present_pages_in_one_aligned_run() {
        let block = |head: u64| (0..512u32).map(move |i| Entry(1 << 63 | (head + u64::from(i))));
        assert!(could_be_pmd_mapped(block(512)));
        assert!(!could_be_pmd_mapped(block(513)));
        assert!(could_be_pmd_mapped((0..512).map(|_| Entry(1 << 63))));
        assert!(!could_be_pmd_mapped((0..512usize).map(|i| Entry(if i == 9 { 0 } else { 1 << 63 }))));
        assert!(!could_be_pmd_mapped((0..511).map(|_| Entry(1 << 63))));
    }
}
