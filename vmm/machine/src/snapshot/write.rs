//! Taking a snapshot: the machine ends, and is in the file.

use std::os::unix::fs::FileExt;

use crate::Kvm;
use guest_mem::{
    Earned, HvaRange, PAGE_SIZE, PAGES_PER_PMD, PMD_SIZE, Page, PageScanner, Region, is_zero_page,
};
use swap::{PageBuffer, checksum};

use super::SnapshotError;
use super::header::Header;
use super::index::Index;
use crate::Machine;
use crate::arch::state::{VcpuState, come_to_rest};
use crate::arch::state_bytes;
use host::signals::Cancel;
use program::whole_file::WholeFile;

/// The pattern that the guest was told to write to its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Its generation.
    pub generation: u64,
    /// Bytes of the arena that hold it, from the start.
    pub filled: u64,
}

/// The snapshot that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its header.
    pub header: Header,
    /// Bytes of the file.
    pub bytes: u64,
    /// How much of the memory was as its backing says.
    pub earned: Earned,
}

/// Ends a machine whose vCPUs wait for orders, and writes it to `file`. `missing` is told the parts of a vCPU's
/// state that this KVM does not give.
pub fn write(
    file: WholeFile,
    kvm: &Kvm,
    machine: Machine,
    pattern: Pattern,
    cancel: &Cancel,
    missing: &mut impl FnMut(String),
) -> Result<Written, SnapshotError> {
    // Before its pages are read: that maps the zero page where nothing is.
    let earned = Earned::of(&mut PageScanner::new()?, machine.core().arena())?;
    let (core, mut vcpus) = machine.stop()?;
    let mut states = Vec::new();
    for (index, fd) in (0..).zip(&mut vcpus) {
        come_to_rest(fd.file_mut(), index)?;
        state_bytes::encode(&VcpuState::take(kvm, fd, index, missing)?, &mut states);
    }
    let mut header = Header {
        vcpus: vcpus.len() as u32,
        backing: core.arena().backing(),
        arena: core.arena().range().len(),
        filled: pattern.filled,
        generation: pattern.generation,
        state: (states.len() as u64, crc32fast::hash(&states)),
        index_crc: 0,
        stored: 0,
    };
    let layout = header.layout();
    put(&file, &states, layout.state.start)?;
    let mut memory = MemoryWriter { file: &file, at: layout.data.start, index: Index::default() };
    let mut buffer = PageBuffer::new(PAGES_PER_PMD as usize)?;
    for region in core.regions() {
        for block in region.range().chunks(PMD_SIZE) {
            cancel.check().map_err(|_| SnapshotError::Cancelled)?;
            memory.block(region, block, &mut buffer)?;
        }
    }
    let index = memory.index;
    header.stored = index.stored();
    let (bytes, crc) = index.encode();
    header.index_crc = crc;
    let layout = header.layout();
    put(&file, &bytes, layout.index.start)?;
    put(&file, &header.encode(), 0)?;
    file.finish()?;
    Ok(Written { header, bytes: layout.index.end, earned })
}

fn put(file: &WholeFile, bytes: &[u8], at: u64) -> Result<(), SnapshotError> {
    Ok(file.file().write_all_at(bytes, at).map_err(|source| file.failed("writing", source))?)
}

/// Writes pages one behind another, but those of zeros.
struct MemoryWriter<'a> {
    file: &'a WholeFile,
    at: u64,
    index: Index,
}

impl MemoryWriter<'_> {
    fn block(
        &mut self,
        region: &Region,
        block: HvaRange,
        buffer: &mut PageBuffer,
    ) -> Result<(), SnapshotError> {
        let pages = &mut buffer[..block.page_count() as usize];
        region.read_pages(block.start(), pages)?;
        let first = (block.start().get() - region.range().start().get()) / PAGE_SIZE;
        for (number, page) in (first..).zip(pages.iter()) {
            self.index.push((!is_zero_page(page)).then(|| checksum(page, number)));
        }
        for run in pages.chunk_by(|page, next| is_zero_page(page) == is_zero_page(next)) {
            if !is_zero_page(&run[0]) {
                put(self.file, Page::bytes(run), self.at)?;
                self.at += size_of_val(run) as u64;
            }
        }
        Ok(())
    }
}
