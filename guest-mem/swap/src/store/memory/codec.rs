//! The compressors, and their contexts, which threads reuse.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use guest_mem::Page;
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};
use rustix::io::Errno;
use zstd_safe::{CCtx, CParameter, DCtx};

use super::classes::LARGEST_PACKED;

/// How a page is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// LZ4: 4 µs a page in, 1.3 out.
    Lz4,
    /// zstd at level 1: three to four times as long as LZ4, for half to three quarters of the room.
    Zstd,
}

impl Codec {
    /// Its name in scenarios.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// zstd's fast level: the next levels take longer than their smaller pages are worth.
const ZSTD_LEVEL: i32 = 1;

/// Compresses one page at a time. Its context and its output are made once.
pub(super) struct Packer {
    context: PackContext,
    out: Box<[u8]>,
}

enum PackContext {
    Lz4(CompressTable),
    Zstd(CCtx<'static>),
}

impl Packer {
    pub(super) fn new(codec: Codec) -> Result<Self, Errno> {
        let context = match codec {
            Codec::Lz4 => PackContext::Lz4(CompressTable::small()),
            Codec::Zstd => {
                let mut context = CCtx::try_create().ok_or(Errno::NOMEM)?;
                for parameter in [
                    CParameter::CompressionLevel(ZSTD_LEVEL),
                    // The slot says how long it is, and the caller has a checksum.
                    CParameter::ContentSizeFlag(false),
                    CParameter::ChecksumFlag(false),
                ] {
                    context.set_parameter(parameter).map_err(|_| Errno::INVAL)?;
                }
                PackContext::Zstd(context)
            }
        };
        // LZ4 needs room for the worst case.
        Ok(Self { context, out: vec![0; get_maximum_output_size(size_of::<Page>())].into() })
    }

    /// The page compressed, or as it is if it does not shrink to [`LARGEST_PACKED`].
    pub(super) fn pack<'a>(&'a mut self, page: &'a Page) -> &'a [u8] {
        let packed = match &mut self.context {
            PackContext::Lz4(table) => compress_into_with_table(&page[..], &mut self.out, table).ok(),
            PackContext::Zstd(context) => context.compress2(&mut self.out[..LARGEST_PACKED], &page[..]).ok(),
        };
        match packed {
            // One byte is no frame and no block, and no length that a slot can say.
            Some(len) if (2..=LARGEST_PACKED).contains(&len) => &self.out[..len],
            _ => &page[..],
        }
    }
}

/// Uncompresses pages.
pub(super) enum Unpacker {
    Lz4,
    Zstd(DCtx<'static>),
}

impl Unpacker {
    pub(super) fn new(codec: Codec) -> Result<Self, Errno> {
        Ok(match codec {
            Codec::Lz4 => Self::Lz4,
            Codec::Zstd => Self::Zstd(DCtx::try_create().ok_or(Errno::NOMEM)?),
        })
    }

    /// Fills the page from the output of `pack`. Returns whether it is whole.
    pub(super) fn unpack(&mut self, bytes: &[u8], page: &mut Page) -> bool {
        if bytes.len() == size_of::<Page>() {
            page.copy_from_slice(bytes);
            return true;
        }
        let len = match self {
            Self::Lz4 => decompress_into(bytes, &mut page[..]).ok(),
            Self::Zstd(context) => context.decompress(&mut page[..], bytes).ok(),
        };
        len == Some(size_of::<Page>())
    }
}

/// Idle contexts: as many as there ever were threads at work at the same time.
pub(super) struct Spares<T> {
    idle: Mutex<Vec<T>>,
}

impl<T> Spares<T> {
    pub(super) fn new() -> Self {
        Self { idle: Mutex::default() }
    }

    /// Runs `work` with a spare context, or with one that `make` makes if there is none.
    pub(super) fn with<R, E>(
        &self,
        make: impl FnOnce() -> Result<T, E>,
        work: impl FnOnce(&mut T) -> Result<R, E>,
    ) -> Result<R, E> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let spare = idle().pop();
        let mut context = match spare {
            Some(context) => context,
            None => make()?,
        };
        let done = work(&mut context);
        idle().push(context);
        done
    }
}

impl<T> fmt::Debug for Spares<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spares").finish_non_exhaustive()
    }
}
