//! The cpio archive that an initramfs is, in its "newc" format, written as it is made.
//!
//! ```text
//! │ "070701" + 13 fields of 8 hex digits │ name, NUL │ pad to 4 │ data │ pad to 4 │ … │ "TRAILER!!!" │ pad to 512 │
//! ```
//!
//! Linux unpacks in order: a directory must come before what is in it. Owner, group and time are 0, so that the
//! same contents make the same archive.

use program::exit::{Class, Classified};
use std::io::{self, Read, Write};

/// The name that ends an archive.
const TRAILER: &str = "TRAILER!!!";
/// Archives are padded to this: what tapes had, and Linux's own tools write.
const BLOCK: u64 = 512;
const ALIGNMENT: u64 = 4;
/// `PATH_MAX`, the NUL included: longer names Linux skips.
const NAME_MAX: usize = 4096;

const S_IFCHR: u32 = 0o020_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// Why an archive could not be written.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum CpioError {
    #[error("{name:?} cannot be a name in an initramfs: {why}")]
    Name { name: String, why: &'static str },
    #[error("{name:?} has {len} bytes, and a file in an initramfs at most 4 GiB")]
    TooLarge { name: String, len: u64 },
    #[error("{name:?} should have {wanted} bytes and ended after {got}: it changed while it was read")]
    Short { name: String, wanted: u64, got: u64 },
    #[error("{name:?} cannot be put into the initramfs")]
    Io { name: String, source: io::Error },
}

impl Classified for CpioError {
    fn class(&self) -> Class {
        match self {
            Self::Name { .. } | Self::TooLarge { .. } | Self::Short { .. } => Class::Mistake,
            Self::Io { .. } => Class::Fault,
        }
    }
}

/// Writes an archive to `W`, entry by entry. Only [`Self::finish`] makes it one.
#[derive(Debug)]
pub struct Writer<W> {
    sink: W,
    written: u64,
    entries: u32,
}

/// One entry's header.
struct Header<'a> {
    name: &'a str,
    mode: u32,
    len: u32,
    device: (u32, u32),
}

impl<W: Write> Writer<W> {
    /// An archive with nothing in it yet.
    pub fn new(sink: W) -> Self {
        Self { sink, written: 0, entries: 0 }
    }

    /// Adds a directory.
    pub fn directory(&mut self, name: &str, permissions: u32) -> Result<(), CpioError> {
        self.entry(name, S_IFDIR | permissions & 0o7777, (0, 0), 0, &mut io::empty())
    }

    /// Adds a file of `len` bytes, which `data` gives.
    ///
    /// # Errors
    /// [`CpioError`]; if `data` gives less, the archive is lost.
    pub fn file(
        &mut self,
        name: &str,
        permissions: u32,
        len: u64,
        data: &mut dyn Read,
    ) -> Result<(), CpioError> {
        self.entry(name, S_IFREG | permissions & 0o7777, (0, 0), len, data)
    }

    /// Adds a symbolic link to `target`.
    pub fn symlink(&mut self, name: &str, target: &str) -> Result<(), CpioError> {
        if target.is_empty() || target.contains('\0') || target.len() >= NAME_MAX {
            return Err(CpioError::Name {
                name: name.to_owned(),
                why: "its target is empty, too long, or has a NUL",
            });
        }
        self.entry(name, S_IFLNK | 0o777, (0, 0), target.len() as u64, &mut target.as_bytes())
    }

    /// Adds a character device of this major and minor number.
    pub fn character_device(
        &mut self,
        name: &str,
        permissions: u32,
        number: (u32, u32),
    ) -> Result<(), CpioError> {
        self.entry(name, S_IFCHR | permissions & 0o7777, number, 0, &mut io::empty())
    }

    /// Ends the archive and gives back where it was written.
    pub fn finish(mut self) -> Result<W, CpioError> {
        let failed = |source| CpioError::Io { name: TRAILER.to_owned(), source };
        self.header(&Header { name: TRAILER, mode: 0, len: 0, device: (0, 0) }).map_err(failed)?;
        self.pad(BLOCK).map_err(failed)?;
        self.sink.flush().map_err(failed)?;
        Ok(self.sink)
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        device: (u32, u32),
        len: u64,
        data: &mut dyn Read,
    ) -> Result<(), CpioError> {
        check(name)?;
        let failed = |source| CpioError::Io { name: name.to_owned(), source };
        let bytes = u32::try_from(len).map_err(|_| CpioError::TooLarge { name: name.to_owned(), len })?;
        self.header(&Header { name, mode, len: bytes, device }).map_err(failed)?;
        let got = io::copy(&mut data.take(len), &mut self.sink).map_err(failed)?;
        self.written += got;
        if got < len {
            return Err(CpioError::Short { name: name.to_owned(), wanted: len, got });
        }
        self.pad(ALIGNMENT).map_err(failed)
    }

    fn header(&mut self, header: &Header<'_>) -> io::Result<()> {
        let trailer = header.name == TRAILER;
        // Linux joins entries of one inode number and more than one link; ours have one, and numbers of their own.
        let inode = if trailer { 0 } else { self.entries + 1 };
        self.entries = self.entries.wrapping_add(1);
        let (major, minor) = header.device;
        let name_len = header.name.len() as u32 + 1;
        let fields = [inode, header.mode, 0, 0, 1, 0, header.len, 0, 0, major, minor, name_len, 0];
        let mut bytes = b"070701".to_vec();
        for field in fields {
            write!(bytes, "{field:08X}")?;
        }
        bytes.extend_from_slice(header.name.as_bytes());
        bytes.push(0);
        self.sink.write_all(&bytes)?;
        self.written += bytes.len() as u64;
        self.pad(ALIGNMENT)
    }

    fn pad(&mut self, alignment: u64) -> io::Result<()> {
        let missing = self.written.next_multiple_of(alignment) - self.written;
        self.sink.write_all(&[0; BLOCK as usize][..missing as usize])?;
        self.written += missing;
        Ok(())
    }
}

/// Names are paths from the root, without a leading slash.
fn check(name: &str) -> Result<(), CpioError> {
    let refuse = |why| Err(CpioError::Name { name: name.to_owned(), why });
    match name {
        "" => refuse("it is empty"),
        TRAILER => refuse("it ends an archive"),
        _ if name.contains('\0') => refuse("it has a NUL in it"),
        _ if name.starts_with('/') => refuse("names begin without a slash"),
        _ if name.split('/').any(|part| part.is_empty() || part == "..") => {
            refuse("it has an empty part or \"..\"")
        }
        _ if name.len() >= NAME_MAX => refuse("it is longer than Linux takes"),
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
