//! What a file given as a kernel is: a bzImage, an ELF kernel, or something else that is refused by its name.

use super::bzimage::{self, BzImage, HeaderError};
use crate::compression::Compression;
use guest::elf::{self, NotAGuest};
use program::input;

/// Why a file is not a kernel that this machine boots. The text completes "the kernel FILE …".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum Refusal {
    #[error("is empty")]
    Empty,
    #[error("is a bzImage, but {0}")]
    BzImage(#[from] HeaderError),
    #[error("is {0}: an x86-64 ELF executable is needed")]
    Elf(String),
    #[error("is a kernel image for {architecture}: this machine is x86-64")]
    Foreign { architecture: &'static str },
    #[error("is an EFI zboot image for {architecture}: this machine boots an x86-64 bzImage or ELF kernel")]
    Zboot { architecture: String },
    #[error(
        "is an EFI application (PE) for {architecture} without a bzImage in it: take the kernel out of it \
         (`objcopy -O binary --only-section=.linux FILE bzImage` for a unified kernel image)"
    )]
    Efi { architecture: String },
    #[error("is a file compressed with {0}: unpack it with `{tool}` if it is a kernel; an initramfs goes to --initrd", tool = .0.tool())]
    Compressed(Compression),
    #[error("is a cpio archive, an initramfs: give it to --initrd, and a bzImage or ELF kernel here")]
    Cpio,
    #[error("is a U-Boot image (uImage): this machine boots a bzImage or ELF kernel")]
    UImage,
    #[error("is a boot sector or a disk image: give the kernel itself; a disk goes to --disk")]
    BootSector,
    #[error("is no kernel, but {}: a bzImage or an x86-64 ELF kernel is needed", input::beginning(.0))]
    Unknown(Vec<u8>),
}

/// A kernel file.
#[derive(Clone, Copy)]
pub enum Kernel<'a> {
    /// A compressed kernel with its setup header.
    BzImage(BzImage<'a>),
    /// An ELF kernel; its program headers are checked when it is loaded.
    Elf(&'a [u8]),
}

impl<'a> Kernel<'a> {
    /// Tells what a file is by its bytes.
    pub fn identify(file: &'a [u8]) -> Result<Self, Refusal> {
        if file.is_empty() {
            return Err(Refusal::Empty);
        }
        let at = |offset: usize, magic: &[u8]| file.get(offset..).is_some_and(|rest| rest.starts_with(magic));
        if at(bzimage::MAGIC_OFFSET, b"HdrS") {
            return Ok(Self::BzImage(BzImage::parse(file)?));
        }
        if at(0, b"\x7fELF") {
            return match elf::check(file) {
                Ok(()) => Ok(Self::Elf(file)),
                Err(NotAGuest(what)) => Err(Refusal::Elf(what)),
            };
        }
        if at(0x38, b"ARM\x64") {
            return Err(Refusal::Foreign { architecture: "AArch64" });
        }
        if at(0x30, b"RISCV") || at(0x38, b"RSC\x05") {
            return Err(Refusal::Foreign { architecture: "RISC-V" });
        }
        if at(0, b"MZ") {
            let architecture = pe_machine(file);
            let zboot = at(4, b"zimg");
            return Err(if zboot { Refusal::Zboot { architecture } } else { Refusal::Efi { architecture } });
        }
        // "070701" and "070702" (newc), "070707" (odc), and the old binary header.
        if at(0, b"07070") || at(0, b"\xc7\x71") {
            return Err(Refusal::Cpio);
        }
        if let Some(compression) = Compression::of(file) {
            return Err(Refusal::Compressed(compression));
        }
        if at(0, &[0x27, 0x05, 0x19, 0x56]) {
            return Err(Refusal::UImage);
        }
        if at(0x1fe, &[0x55, 0xaa]) {
            return Err(Refusal::BootSector);
        }
        Err(Refusal::Unknown(file[..file.len().min(input::BEGINNING)].to_vec()))
    }

    /// What the kernel says of itself, in its setup header: release, builder, date.
    pub fn version(&self) -> Option<&'a str> {
        match self {
            Self::BzImage(image) => image.version(),
            Self::Elf(_) => None,
        }
    }
    /// The release, by which its modules are found (`uname -r`).
    pub fn release(&self) -> Option<&'a str> {
        self.version()?.split_whitespace().next()
    }
}

/// The machine that a PE file's header names.
fn pe_machine(file: &[u8]) -> String {
    let word = |at: usize| Some(u16::from_le_bytes(file.get(at..at.checked_add(2)?)?.try_into().ok()?));
    let header = || {
        let at = usize::from(word(0x3c)?) | usize::from(word(0x3e)?) << 16;
        (file.get(at..at.checked_add(4)?)? == b"PE\0\0").then(|| word(at + 4))?
    };
    match header() {
        Some(0x8664) => "x86-64".to_owned(),
        Some(0x014c) => "32-bit x86".to_owned(),
        Some(0xaa64) => "AArch64".to_owned(),
        Some(0x01c0 | 0x01c2 | 0x01c4) => "32-bit Arm".to_owned(),
        Some(0x5032 | 0x5064) => "RISC-V".to_owned(),
        Some(0x6232 | 0x6264) => "LoongArch".to_owned(),
        Some(other) => format!("PE machine {other:#x}"),
        None => "an unknown machine".to_owned(),
    }
}

#[cfg(test)]
mod tests;
