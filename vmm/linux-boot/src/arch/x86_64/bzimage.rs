//! The bzImage: a setup part of some sectors, then the protected-mode part with the compressed kernel in it.
//!
//! ```text
//! 0x000            0x1f1         0x200 + kernel_version     (setup_sects + 1) * 512
//! │ EFI stub, "MZ" │ setup header │ … "6.1.0-56-cloud …" …  │ decompressor │ payload │ size │ … │ signature?
//!                                                           └───────── syssize * 16 ───────────┘
//!                                                                          └ payload_offset, payload_length
//! ```
//!
//! The fields are those of `Documentation/arch/x86/boot.rst`. Of a hostile file every one is checked here, once;
//! what follows trusts this type.

use linux_loader::loader::bootparam::setup_header;
use vm_memory::ByteValued;

use super::payload::{self, PayloadError};

/// Where the setup header lies in file and zero page.
pub const HEADER_OFFSET: usize = 0x1f1;
/// `header` of a setup header, "HdrS".
const MAGIC: u32 = 0x5372_6448;
/// Where [`MAGIC`] lies.
pub(super) const MAGIC_OFFSET: usize = 0x202;
/// `boot_flag`.
const BOOT_FLAG: u16 = 0xaa55;
/// The first protocol with `payload_offset`.
const OLDEST: u16 = 0x0208;
/// The first protocol with `xloadflags`.
const WITH_XLOADFLAGS: u16 = 0x020c;
/// The first protocol with `pref_address` and `init_size`.
const WITH_INIT_SIZE: u16 = 0x020a;
/// `LOADED_HIGH` in `loadflags`: a bzImage, not a zImage.
const LOADED_HIGH: u8 = 1;
/// `XLF_KERNEL_64` in `xloadflags`: there is a 64-bit entry at [`ENTRY_64`].
const XLF_KERNEL_64: u16 = 1;
/// From the protected-mode part's start to its 64-bit entry.
pub const ENTRY_64: u64 = 0x200;
/// Bytes of a sector.
const SECTOR: usize = 512;
/// The longest version string looked at.
const VERSION_MAX: usize = 256;

/// Why a file with a setup header is no bzImage that this machine runs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("it is truncated: {what} needs {needed} bytes, and the file has {len}")]
    Truncated { what: &'static str, needed: u64, len: u64 },
    #[error("its setup header is damaged: {field} is {value:#x}, {wanted}")]
    Field { field: &'static str, value: u64, wanted: &'static str },
    #[error("it speaks boot protocol {}.{:02}, from before Linux 2.6.26: 2.08 or later is needed", .0 >> 8, .0 & 0xff)]
    TooOld(u16),
    #[error("it is a zImage (LOADED_HIGH is not set): build it as `bzImage`")]
    ZImage,
    #[error("it is a 32-bit kernel (XLF_KERNEL_64 is not set): an x86-64 kernel is needed")]
    ThirtyTwoBit,
}

/// A bzImage whose every field was checked.
#[derive(Clone, Copy)]
pub struct BzImage<'a> {
    file: &'a [u8],
    header: setup_header,
    setup_len: usize,
    protected_len: usize,
}

impl<'a> BzImage<'a> {
    /// Checks the setup header field by field; the error names the first one that is wrong.
    pub fn parse(file: &'a [u8]) -> Result<Self, HeaderError> {
        let header = read_header(file)?;
        let field = |field, value: u64, wanted| Err(HeaderError::Field { field, value, wanted });
        if header.boot_flag != BOOT_FLAG {
            return field("boot_flag", header.boot_flag.into(), "not 0xaa55");
        }
        if header.header != MAGIC {
            return field("header", header.header.into(), "not \"HdrS\"");
        }
        if header.version < OLDEST {
            return Err(HeaderError::TooOld(header.version));
        }
        if header.loadflags & LOADED_HIGH == 0 {
            return Err(HeaderError::ZImage);
        }
        if header.version >= WITH_XLOADFLAGS && header.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(HeaderError::ThirtyTwoBit);
        }
        if header.cmdline_size == 0 {
            return field("cmdline_size", 0, "a kernel takes a command line");
        }
        if header.initrd_addr_max == 0 {
            return field("initrd_addr_max", 0, "a kernel takes an initrd");
        }
        if !header.kernel_alignment.is_power_of_two() {
            return field("kernel_alignment", header.kernel_alignment.into(), "not a power of two");
        }
        if header.version >= WITH_INIT_SIZE {
            if header.init_size == 0 {
                return field("init_size", 0, "a kernel needs memory");
            }
            if header.pref_address % 4096 != 0 {
                return field("pref_address", header.pref_address, "not a multiple of 4096");
            }
        }
        // 0 stands for 4: the very first kernels.
        let sectors = if header.setup_sects == 0 { 4 } else { usize::from(header.setup_sects) };
        let setup_len = (sectors + 1) * SECTOR;
        let len = file.len() as u64;
        let protected_len = u64::from(header.syssize) * 16;
        let needed = setup_len as u64 + protected_len;
        if needed > len {
            return Err(HeaderError::Truncated { what: "its protected-mode part (syssize)", needed, len });
        }
        let image = Self { file, header, setup_len, protected_len: protected_len as usize };
        let (offset, payload_len) = (u64::from(header.payload_offset), u64::from(header.payload_length));
        if payload_len == 0 {
            return field("payload_length", 0, "nothing is packed in it");
        }
        if offset + payload_len > protected_len {
            return field("payload_offset", offset, "the payload leaves the protected-mode part");
        }
        Ok(image)
    }

    /// The setup header as it stands in the file, zero where the file's is shorter.
    pub fn header(&self) -> setup_header {
        self.header
    }
    /// What linux-loader takes: the file up to the end of the protected-mode part. Signatures
    /// and padding behind it are cut off.
    pub fn image(&self) -> &'a [u8] {
        &self.file[..self.setup_len + self.protected_len]
    }
    /// Bytes of the protected-mode part.
    pub fn protected_len(&self) -> u64 {
        self.protected_len as u64
    }
    /// The packed kernel.
    pub fn payload(&self) -> &'a [u8] {
        let start = self.setup_len + self.header.payload_offset as usize;
        &self.file[start..start + self.header.payload_length as usize]
    }
    /// Whether the decompressor has a 64-bit entry. Before protocol 2.12 the header does not say.
    pub fn has_64_bit_entry(&self) -> bool {
        self.header.version >= WITH_XLOADFLAGS
    }
    /// Where the kernel wants to run; its compile-time address.
    pub fn preferred_address(&self) -> u64 {
        if self.header.version >= WITH_INIT_SIZE { self.header.pref_address } else { 0x100_0000 }
    }
    /// Bytes the kernel needs from where it runs, before it has read a memory map.
    pub fn init_size(&self) -> u64 {
        if self.header.version >= WITH_INIT_SIZE { self.header.init_size.into() } else { 0 }
    }

    /// What the kernel says of itself: release, builder, date. `None` where it says nothing readable.
    pub fn version(&self) -> Option<&'a str> {
        let at = usize::from(self.header.kernel_version);
        // 0 stands for no string.
        let start = at.checked_add(0x200).filter(|&start| at != 0 && start < self.setup_len)?;
        let room = &self.file[start..self.setup_len.min(start + VERSION_MAX)];
        let end = room.iter().position(|&byte| byte == 0)?;
        let text = std::str::from_utf8(&room[..end]).ok()?;
        (!text.is_empty() && text.chars().all(|c| !c.is_control())).then_some(text)
    }

    /// Unpacks the kernel, into at most `limit` bytes.
    pub fn unpack(&self, limit: u64) -> Result<Vec<u8>, PayloadError> {
        // The kernel unpacks itself into init_size bytes: a payload that claims more is a lie.
        let most = if self.init_size() == 0 { limit } else { limit.min(self.init_size()) };
        payload::unpack(self.payload(), most)
    }
}

/// The setup header, of which the file says how long it is.
fn read_header(file: &[u8]) -> Result<setup_header, HeaderError> {
    let truncated = |needed: usize| HeaderError::Truncated {
        what: "its setup header",
        needed: needed as u64,
        len: file.len() as u64,
    };
    // The jump at 0x200 leads over the header; its second byte is its reach.
    let reach = usize::from(*file.get(0x201).ok_or_else(|| truncated(MAGIC_OFFSET))?);
    let end = (MAGIC_OFFSET + reach).min(HEADER_OFFSET + size_of::<setup_header>());
    let bytes = file.get(HEADER_OFFSET..end).ok_or_else(|| truncated(end))?;
    let mut header = setup_header::default();
    header.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
    Ok(header)
}
