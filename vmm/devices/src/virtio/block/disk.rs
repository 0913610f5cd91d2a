//! The file behind a block device: a raw image, or a block device of the host.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use virtio_bindings::virtio_blk::VIRTIO_BLK_ID_BYTES;

use super::{RequestError, SECTOR};
use program::exit::{Class, Classified};
use program::input::{self, FileKind, InputError};

/// A disk that cannot be given to the guest.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum DiskError {
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("the disk {} cannot be written: attach it read-only, or change its permissions", path.display())]
    NotWritable { path: PathBuf },
    #[error("the disk {} is empty: a raw image has at least one sector of 512 bytes", path.display())]
    Empty { path: PathBuf },
    #[error("the disk {} has {len} bytes, not a multiple of 512: it is no raw image, or was cut short", path.display())]
    Unaligned { path: PathBuf, len: u64 },
    #[error("cannot find the end of the disk {}", path.display())]
    End {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Classified for DiskError {
    fn class(&self) -> Class {
        match self {
            Self::Input(error) => error.class(),
            Self::NotWritable { .. } | Self::Empty { .. } | Self::Unaligned { .. } => Class::Mistake,
            Self::End { .. } => Class::Fault,
        }
    }
}

fn is_refused(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)
}

/// An open disk.
#[derive(Debug)]
pub struct Disk {
    /// Its position belongs to the request being served.
    file: File,
    sectors: u64,
    read_only: bool,
    id: [u8; VIRTIO_BLK_ID_BYTES as usize],
}

impl Disk {
    /// Opens the raw image or block device at `path`. `id` is the serial number that the guest sees: its first 20 bytes.
    pub fn open(path: &Path, read_only: bool, id: &str) -> Result<Self, DiskError> {
        let owned = || path.to_owned();
        let file = input::open_for(FileKind::Disk, path, OpenOptions::new().read(true).write(!read_only));
        let mut file = file.map_err(|error| match error {
            InputError::Open { source, .. } if !read_only && is_refused(&source) => {
                DiskError::NotWritable { path: owned() }
            }
            other => other.into(),
        })?;
        // The end, because a block device has no length.
        let len = file.seek(SeekFrom::End(0)).map_err(|source| DiskError::End { path: owned(), source })?;
        if len == 0 {
            return Err(DiskError::Empty { path: owned() });
        }
        if !len.is_multiple_of(SECTOR) {
            return Err(DiskError::Unaligned { path: owned(), len });
        }
        let mut serial = [0u8; VIRTIO_BLK_ID_BYTES as usize];
        serial.iter_mut().zip(id.bytes()).for_each(|(to, from)| *to = from);
        Ok(Self { file, sectors: len / SECTOR, read_only, id: serial })
    }

    /// Its size, in sectors of 512 bytes. The guest is told this once.
    pub const fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether the guest may only read it.
    pub const fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub(super) const fn id(&self) -> &[u8] {
        &self.id
    }

    /// The file, to read or write at its position.
    pub(super) const fn file(&self) -> &File {
        &self.file
    }

    /// The bytes of a request, if they are whole sectors of this disk.
    pub(super) fn range(&self, sector: u64, len: u64) -> Result<Range<u64>, RequestError> {
        let end = sector.checked_add(len / SECTOR).filter(|&end| end <= self.sectors);
        match end {
            Some(end) if len.is_multiple_of(SECTOR) => Ok(sector * SECTOR..end * SECTOR),
            _ => Err(RequestError::Io),
        }
    }

    pub(super) fn seek(&mut self, to: u64) -> Result<(), RequestError> {
        self.file.seek(SeekFrom::Start(to)).map(drop).map_err(|_| RequestError::Io)
    }

    /// Gives the bytes back to the file system; they read as zeroes.
    pub(super) fn punch_hole(&mut self, range: Range<u64>) -> Result<(), RequestError> {
        self.allocate(FallocateFlags::PUNCH_HOLE, range)
    }

    /// Makes the bytes zeroes and keeps them allocated.
    pub(super) fn write_zeroes(&mut self, range: Range<u64>) -> Result<(), RequestError> {
        self.allocate(FallocateFlags::ZERO_RANGE, range)
    }

    fn allocate(&mut self, how: FallocateFlags, range: Range<u64>) -> Result<(), RequestError> {
        if range.is_empty() {
            return Ok(());
        }
        let len = range.end - range.start;
        match fallocate(&self.file, how | FallocateFlags::KEEP_SIZE, range.start, len) {
            Ok(()) => Ok(()),
            // The guest's kernel then writes the zeroes itself, or leaves out the discard.
            Err(Errno::OPNOTSUPP) => Err(RequestError::Unsupported),
            Err(_) => Err(RequestError::Io),
        }
    }
}
