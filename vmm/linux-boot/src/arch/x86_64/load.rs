//! Puts everything that a Linux kernel needs into a guest's fresh memory.
//!
//! | kernel | placed by | begins at |
//! | --- | --- | --- |
//! | bzImage | unpacked here; its ELF segments to where they are linked | the ELF entry, zero page in RSI |
//! | bzImage, to be unpacked in the guest | its protected-mode part to its preferred address | 0x200 after that, zero page in RSI |
//! | ELF with a PVH note | its segments | the PVH entry, start info in EBX |
//! | ELF without one | its segments | the ELF entry, zero page in RSI |

use std::io::Cursor;

use guest_mem::{Address, Gpa, GpaRange};
use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{BzImage as BzImageLoader, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::acpi::{self, AcpiError};
use super::bzimage::{BzImage, ENTRY_64};
use super::image::Kernel;
use super::layout::{self, CMDLINE, CMDLINE_ROOM, HIGH_RAM_START, MMIO_GAP_START, START_INFO, ZERO_PAGE};
use super::memory_map::memory_map;
use super::payload::PayloadError;
use super::vmlinux::{self, VmlinuxError};
use super::zero_page::{self, Contents};
use super::{long_mode, reset_vector, start_info};
use crate::initrd::{Initrd, InitrdError, RoomEnd};
use crate::platform::Platform;
use guest::GuestRam;
use guest::elf::{self, NotAGuest};
use program::exit::{Class, Classified};

/// `COMMAND_LINE_SIZE` of x86 less the NUL, for kernels that do not say it.
const CMDLINE_MAX: u64 = 2047;
/// The highest address of an initrd, for kernels that do not say it: what they have said for twenty years.
const INITRD_ADDR_MAX: u64 = 0x7fff_ffff;

/// What is to be booted.
#[derive(Clone, Copy)]
pub struct Boot<'a> {
    /// The kernel.
    pub kernel: &'a Kernel<'a>,
    /// Its initrd.
    pub initrd: Option<Initrd<'a>>,
    /// Its command line.
    pub cmdline: &'a str,
    /// Whether a bzImage is to unpack itself.
    pub in_guest_decompression: bool,
}

/// Where and how the boot vCPU begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// PVH: 32-bit protected mode without paging, EBX the start info.
    Pvh {
        /// The PVH entry.
        entry: Gpa,
        /// `hvm_start_info`.
        start_info: Gpa,
    },
    /// The 64-bit boot protocol: long mode, RSI the zero page.
    Linux64 {
        /// The 64-bit entry.
        entry: Gpa,
        /// `struct boot_params`.
        boot_params: Gpa,
    },
}

/// Why a kernel cannot be booted with what it was given.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum LoadError {
    #[error("the guest has {0} bytes of memory at address 0, and Linux needs more than its first MiB")]
    NoMemory(u64),
    #[error("the guest's memory is in {0} pieces; its memory map holds 128")]
    TooManyPieces(usize),
    #[error(transparent)]
    Payload(#[from] PayloadError),
    #[error("what is packed in the bzImage is no kernel of this machine's")]
    Packed(#[source] NotAGuest),
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    #[error(transparent)]
    Vmlinux(#[from] VmlinuxError),
    #[error(
        "the kernel speaks a boot protocol before 2.12 (Linux 3.8) and does not say whether its decompressor has a \
         64-bit entry: leave --in-guest-decompression out"
    )]
    NoEntry64,
    #[error(
        "the kernel needs {needed} until it has read the memory map, and the guest's memory for it is {room}: {}",
        layout::kernel_remedy(*needed, *room)
    )]
    KernelTooLarge { needed: GpaRange, room: GpaRange },
    #[error("the kernel wants {len} bytes at {at:#x}, which is past the end of the address space")]
    WildAddress { at: u64, len: u64 },
    #[error("the bzImage cannot be loaded")]
    Place(#[source] linux_loader::loader::Error),
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    #[error("the command line has {len} bytes, and this kernel takes {limit}: shorten it by {}", .len - .limit)]
    CmdlineTooLong { len: u64, limit: u64 },
    #[error("the command line has a NUL at byte {0}, where the kernel would stop reading: take it out")]
    CmdlineNul(usize),
    #[error("the {what} cannot be written")]
    Structure { what: &'static str, source: linux_loader::configurator::Error },
    #[error("the {what} cannot be written to the guest's memory")]
    Memory { what: &'static str, source: GuestMemoryError },
}

impl Classified for LoadError {
    fn class(&self) -> Class {
        match self {
            Self::Initrd(error) => error.class(),
            Self::Payload(error) => error.class(),
            Self::NoMemory(_)
            | Self::Packed(_)
            | Self::Vmlinux(_)
            | Self::NoEntry64
            | Self::KernelTooLarge { .. }
            | Self::WildAddress { .. }
            | Self::Place(_)
            | Self::CmdlineTooLong { .. }
            | Self::CmdlineNul(_) => Class::Mistake,
            Self::Acpi(_) | Self::TooManyPieces(_) | Self::Structure { .. } | Self::Memory { .. } => {
                Class::Fault
            }
        }
    }
}

/// A file that is booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootFile {
    /// The kernel.
    Kernel,
    /// Its initrd.
    Initrd,
}

impl LoadError {
    /// The file that it speaks of, for callers that know the file's name.
    pub fn file(&self) -> Option<BootFile> {
        match self {
            Self::Payload(_)
            | Self::Packed(_)
            | Self::Vmlinux(_)
            | Self::NoEntry64
            | Self::KernelTooLarge { .. }
            | Self::WildAddress { .. }
            | Self::Place(_) => Some(BootFile::Kernel),
            Self::Initrd(_) => Some(BootFile::Initrd),
            Self::NoMemory(_)
            | Self::Acpi(_)
            | Self::TooManyPieces(_)
            | Self::CmdlineTooLong { .. }
            | Self::CmdlineNul(_)
            | Self::Structure { .. }
            | Self::Memory { .. } => None,
        }
    }
}

/// A kernel in memory, before it is known how it is entered.
struct Loaded {
    /// Its own memory, nothing else may lie there.
    extent: GpaRange,
    entry: Gpa,
    pvh_entry: Option<Gpa>,
    header: Option<setup_header>,
    /// Where the protected-mode part lies, if it is in memory.
    protected_mode: Option<Gpa>,
}

/// Puts kernel, initrd, command line, boot structures and ACPI tables into guest memory, which is fresh: all zero.
pub fn load(memory: &GuestRam, platform: &Platform, boot: &Boot<'_>) -> Result<Start, LoadError> {
    let low = layout::low_memory(platform);
    let room = GpaRange::new(HIGH_RAM_START, low.end()).filter(|room| !room.is_empty());
    let room = room.ok_or(LoadError::NoMemory(low.len()))?;
    let loaded = place(memory, room, boot)?;
    let limits = loaded.header;
    write_cmdline(memory, boot.cmdline, limits.map_or(CMDLINE_MAX, |header| header.cmdline_size.into()))?;
    let initrd = match &boot.initrd {
        Some(initrd) => {
            let highest = limits.map_or(INITRD_ADDR_MAX, |header| header.initrd_addr_max.into());
            let (end, why) = initrd_end(Gpa::new(highest + 1), room.end());
            let left = GpaRange::new(loaded.extent.end(), end).unwrap_or(GpaRange::empty(end));
            Some(initrd.place(memory, left, why)?)
        }
        None => None,
    };
    reset_vector::write(memory).map_err(|source| LoadError::Memory { what: "reset vector", source })?;
    let rsdp = acpi::write(memory, platform)?;
    let map = memory_map(platform);
    let contents =
        Contents { header: loaded.header, protected_mode: loaded.protected_mode, map: &map, initrd, rsdp };
    // Made for a PVH kernel too: its map has the same bounds.
    let page = zero_page::zero_page(&contents).ok_or(LoadError::TooManyPieces(map.len()))?;
    if let Some(entry) = loaded.pvh_entry {
        start_info::write(memory, &map, initrd, rsdp)
            .map_err(|source| LoadError::Structure { what: "PVH start info", source })?;
        return Ok(Start::Pvh { entry, start_info: START_INFO });
    }
    zero_page::write(memory, &page).map_err(|source| LoadError::Structure { what: "zero page", source })?;
    long_mode::write(memory).map_err(|source| LoadError::Memory { what: "boot page tables", source })?;
    Ok(Start::Linux64 { entry: loaded.entry, boot_params: ZERO_PAGE })
}

/// Where the room for an initrd ends: at what the kernel allows, or at the end of low memory.
fn initrd_end(allowed: Gpa, memory: Gpa) -> (Gpa, RoomEnd) {
    match () {
        () if allowed < memory => (allowed, RoomEnd::Kernel),
        () if memory == MMIO_GAP_START => (memory, RoomEnd::Gap),
        () => (memory, RoomEnd::Memory),
    }
}

/// Puts the kernel itself into `room`.
fn place(memory: &GuestRam, room: GpaRange, boot: &Boot<'_>) -> Result<Loaded, LoadError> {
    match boot.kernel {
        Kernel::Elf(image) => {
            let placed = vmlinux::place(memory, room, image)?;
            let (entry, pvh_entry) = (placed.entry, placed.pvh_entry);
            Ok(Loaded { extent: placed.extent, entry, pvh_entry, header: None, protected_mode: None })
        }
        Kernel::BzImage(image) if boot.in_guest_decompression => place_packed(memory, room, image),
        Kernel::BzImage(image) => {
            // What it runs in is claimed first: unpacking is the long part.
            let needed = init_range(image, 0)?;
            if !room.covers(needed) {
                return Err(LoadError::KernelTooLarge { needed, room });
            }
            let unpacked = image.unpack(room.len())?;
            elf::check(&unpacked).map_err(LoadError::Packed)?;
            let placed = vmlinux::place(memory, room, &unpacked)?;
            let extent = placed.extent.hull(needed);
            let header = Some(image.header());
            Ok(Loaded { extent, entry: placed.entry, pvh_entry: None, header, protected_mode: None })
        }
    }
}

/// Puts a bzImage's protected-mode part to where the kernel is to run; it moves itself out of the way.
fn place_packed(memory: &GuestRam, room: GpaRange, image: &BzImage<'_>) -> Result<Loaded, LoadError> {
    if !image.has_64_bit_entry() {
        return Err(LoadError::NoEntry64);
    }
    let extent = init_range(image, image.protected_len())?;
    if !room.covers(extent) {
        return Err(LoadError::KernelTooLarge { needed: extent, room });
    }
    let start = extent.start();
    let wild = LoadError::WildAddress { at: start.get(), len: extent.len() };
    let entry = start.checked_add(ENTRY_64).filter(|entry| extent.contains(*entry)).ok_or(wild)?;
    let at = Some(GuestAddress(start.get()));
    BzImageLoader::load(memory, at, &mut Cursor::new(image.image()), None).map_err(LoadError::Place)?;
    Ok(Loaded { extent, entry, pvh_entry: None, header: Some(image.header()), protected_mode: Some(start) })
}

/// The memory that a bzImage's kernel takes before it has read the memory map, at least `least` bytes.
fn init_range(image: &BzImage<'_>, least: u64) -> Result<GpaRange, LoadError> {
    let (at, len) = (image.preferred_address(), image.init_size().max(least));
    GpaRange::with_len(Gpa::new(at), len).ok_or(LoadError::WildAddress { at, len })
}

/// Writes the command line and its NUL.
fn write_cmdline(memory: &GuestRam, cmdline: &str, limit: u64) -> Result<(), LoadError> {
    let (len, limit) = (cmdline.len() as u64, limit.min(CMDLINE_ROOM - 1));
    if len > limit {
        return Err(LoadError::CmdlineTooLong { len, limit });
    }
    if let Some(at) = cmdline.bytes().position(|byte| byte == 0) {
        return Err(LoadError::CmdlineNul(at));
    }
    let failed = |source| LoadError::Memory { what: "command line", source };
    let start = GuestAddress(CMDLINE.get());
    memory.write_slice(cmdline.as_bytes(), start).map_err(failed)?;
    memory.write_obj(0_u8, GuestAddress(start.0 + len)).map_err(failed)
}

#[cfg(test)]
mod tests;
