//! Where evicted pages go. A store takes batches of pages, says for each where it keeps it, and gives them back.
//! It knows nothing of addresses, of userfaultfd, or of why a page left.
//!
//! ```text
//!                put: &[Page] ─> &mut [Slot]                 get: &[Slot] ─> &mut [Page]
//!   caller ─────────────┬──────────────────────────────────────────┬───────────────────── checksum, is_zero_page
//!          CompressedStore    LZ4 or zstd ─> size classes ─> 64 KiB segments of one mapping
//!          FileStore          extents of an unlinked file, direct I/O where there is any
//!          ImageStore         pages of a file that was written before, never any others
//! ```
//!
//! A slot is validated before it is followed: a foreign or a freed one is an error, and where a freed one has
//! meanwhile been given to another page, that page's content comes back and fails the caller's [`checksum()`].

mod buffer;
mod checksum;
mod error;
mod file;
mod mapping;
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

/// What a store holds.
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

/// Where evicted pages go. Any number of threads may be in any of the methods at once.
pub trait Store: Send + Sync + Debug {
    /// What a user calls it: `lz4`, `zstd`, `file`.
    fn name(&self) -> &'static str;

    /// Stores each page and fills in its slot. All or nothing: after an error nothing of the batch is kept, and
    /// what is in `slots` means nothing.
    ///
    /// # Errors
    /// No room, or what the medium says.
    fn put(&self, pages: &[Page], slots: &mut [Slot]) -> Result<(), StoreError>;

    /// Reads each slot's page back. What is stored stays. After an error, what is in `pages` means nothing.
    ///
    /// # Errors
    /// A slot that keeps nothing, content that no longer unpacks, or what the medium says; with the index of the
    /// page in the batch.
    fn get(&self, slots: &[Slot], pages: &mut [Page]) -> Result<(), StoreError>;

    /// Gives the room of each slot back. A slot that keeps nothing is passed over.
    fn free(&self, slots: &[Slot]);

    /// What is stored now.
    fn usage(&self) -> Usage;
}

fn check_shape(pages: usize, slots: usize) -> Result<(), StoreError> {
    if pages == slots { Ok(()) } else { Err(StoreError::Shape { pages, slots }) }
}
