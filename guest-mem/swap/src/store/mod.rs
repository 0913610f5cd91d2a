//! Stores of evicted pages. A store takes batches of pages, returns a slot for each, and gives them back by their slots.
//! It does not depend on addresses or userfaultfd.
//!
//! ```text
//!                put: &[Page] ─> &mut [Slot]                 get: &[Slot] ─> &mut [Page]
//!   caller ─────────────┬──────────────────────────────────────────┬───────────────────── checksum, is_zero_page
//!          CompressedStore    LZ4 or zstd ─> size classes ─> 64 KiB segments of one mapping
//!          FileStore          extents of an unlinked file, direct I/O where there is any
//!          ImageStore         pages of a file that was written before, never any others
//! ```
//!
//! A slot is validated before it is followed: a foreign or a freed one is an error. If a freed slot was given to another
//! page meanwhile, that page's content comes back and fails the caller's [`checksum()`].

mod buffer;
mod checksum;
mod error;
mod file;
mod memory;
mod slot;
#[cfg(test)]
mod testing;

use std::fmt::Debug;

use guest_mem::Page;

pub use buffer::{BufferError, PageBuffer};
pub use checksum::checksum;
pub use error::StoreError;
pub use file::{FileIo, FileStore, FileStoreError, ImageStore};
pub use memory::{Codec, CompressedStore};
pub use slot::Slot;

/// The content of a store, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Pages stored.
    pub pages: u64,
    /// Bytes they take as they are stored: compressed, if they are.
    pub stored_bytes: u64,
    /// Bytes of memory or disk behind them, with what is lost to rounding and bookkeeping. Contexts of compressors,
    /// one for each thread that was ever inside at the same time, are not counted.
    pub held_bytes: u64,
}

/// A store of evicted pages. Any number of threads may call any of the methods at once.
pub trait Store: Send + Sync + Debug {
    /// Its name in scenarios: `lz4`, `zstd`, `file`.
    fn name(&self) -> &'static str;

    /// Stores each page and fills in its slot. All or nothing: after an error no page of the batch is kept, and `slots` is
    /// undefined.
    ///
    /// # Errors
    /// No room, or an error of the medium.
    fn put(&self, pages: &[Page], slots: &mut [Slot]) -> Result<(), StoreError>;

    /// Reads each slot's page back. The pages stay stored. After an error, `pages` is undefined.
    ///
    /// # Errors
    /// A slot without a page, content that no longer unpacks, or an error of the medium; with the index of the page in the
    /// batch.
    fn get(&self, slots: &[Slot], pages: &mut [Page]) -> Result<(), StoreError>;

    /// Frees each slot. A slot without a page is passed over.
    fn free(&self, slots: &[Slot]);

    /// Its content now.
    fn usage(&self) -> Usage;
}

fn check_shape(pages: usize, slots: usize) -> Result<(), StoreError> {
    if pages == slots { Ok(()) } else { Err(StoreError::Shape { pages, slots }) }
}
