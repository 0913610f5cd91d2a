//! ELF kernels: their program headers checked against the guest's memory, then placed by linux-loader.

use std::io::Cursor;

use super::layout;
use elf::ElfBytes;
use elf::abi::PT_LOAD;
use elf::endian::LittleEndian;
use guest_mem::{Gpa, GpaRange};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::GuestAddress;

use guest::GuestRam;

/// Program headers at most; a kernel has five.
const MAX_SEGMENTS: u16 = 64;

/// Why an ELF kernel cannot be placed.
#[derive(Debug, thiserror::Error)]
pub enum VmlinuxError {
    #[error("the kernel's ELF headers are damaged")]
    Headers(#[source] elf::ParseError),
    #[error("the kernel has {0} program headers; at most {MAX_SEGMENTS} make sense")]
    TooManySegments(u16),
    #[error("the kernel has nothing to load (no PT_LOAD program header)")]
    NothingToLoad,
    #[error("the kernel is truncated: segment {segment} ends at byte {end:#x}, and the file has {len:#x}")]
    Truncated { segment: usize, end: u64, len: u64 },
    #[error(
        "the kernel's segment {segment} makes no sense: {memory:#x} bytes at {at:#x}, {file:#x} of them in the file"
    )]
    Segment { segment: usize, at: u64, memory: u64, file: u64 },
    #[error(
        "the kernel's segment {segment} at {range} does not fit into {room}, the guest's memory for kernels: {}",
        layout::kernel_remedy(*range, *room)
    )]
    Outside { segment: usize, range: GpaRange, room: GpaRange },
    #[error("the kernel's segments at {first} and {second} overlap")]
    Overlap { first: GpaRange, second: GpaRange },
    #[error("the kernel's {kind} entry {entry} lies in none of its segments")]
    WildEntry { kind: &'static str, entry: Gpa },
    #[error("the kernel cannot be loaded")]
    Load(#[source] linux_loader::loader::Error),
}

/// A placed ELF kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// All of its segments, and what lies between them.
    pub extent: GpaRange,
    /// The 64-bit entry (`phys_startup_64`).
    pub entry: Gpa,
    /// The PVH entry, 32-bit, if it has one.
    pub pvh_entry: Option<Gpa>,
}

/// Puts an ELF kernel's segments into `room`. The memory is taken to be fresh: what a segment has beyond its
/// bytes in the file is zero there already.
///
/// # Errors
/// [`VmlinuxError`]; then nothing was written, unless linux-loader failed.
pub fn place(memory: &GuestRam, room: GpaRange, image: &[u8]) -> Result<Placed, VmlinuxError> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(image).map_err(VmlinuxError::Headers)?;
    let segments = segments(&file, image.len() as u64, room)?;
    let extent = segments.iter().fold(segments[0], |all, &segment| all.hull(segment));
    let inside = |kind, entry| match segments.iter().any(|segment| segment.contains(entry)) {
        true => Ok(entry),
        false => Err(VmlinuxError::WildEntry { kind, entry }),
    };
    let entry = inside("64-bit", Gpa::new(file.ehdr.e_entry))?;
    let loaded = Elf::load(memory, None, &mut Cursor::new(image), None).map_err(VmlinuxError::Load)?;
    let pvh_entry = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(GuestAddress(entry)) => Some(inside("PVH", Gpa::new(entry))?),
        _ => None,
    };
    Ok(Placed { extent, entry, pvh_entry })
}

/// Where the segments go: inside of `room`, apart from one another, at least one, by ascending address.
fn segments(
    file: &ElfBytes<'_, LittleEndian>,
    len: u64,
    room: GpaRange,
) -> Result<Vec<GpaRange>, VmlinuxError> {
    if file.ehdr.e_phnum > MAX_SEGMENTS {
        return Err(VmlinuxError::TooManySegments(file.ehdr.e_phnum));
    }
    let mut segments = Vec::new();
    for (segment, header) in file.segments().into_iter().flatten().enumerate() {
        if header.p_type != PT_LOAD || header.p_memsz == 0 {
            continue;
        }
        let (at, memory, bytes) = (header.p_paddr, header.p_memsz, header.p_filesz);
        let nonsense = || VmlinuxError::Segment { segment, at, memory, file: bytes };
        let range =
            GpaRange::with_len(Gpa::new(at), memory).filter(|_| bytes <= memory).ok_or_else(nonsense)?;
        let end = header.p_offset.checked_add(bytes).ok_or_else(nonsense)?;
        if end > len {
            return Err(VmlinuxError::Truncated { segment, end, len });
        }
        if !room.covers(range) {
            return Err(VmlinuxError::Outside { segment, range, room });
        }
        segments.push(range);
    }
    if segments.is_empty() {
        return Err(VmlinuxError::NothingToLoad);
    }
    segments.sort_by_key(|range| range.start());
    match segments.windows(2).find(|pair| pair[0].overlaps(pair[1])) {
        Some(pair) => Err(VmlinuxError::Overlap { first: pair[0], second: pair[1] }),
        None => Ok(segments),
    }
}

#[cfg(test)]
mod tests;
