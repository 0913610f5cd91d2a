//! Why a store did not keep a page, or did not give it back.

use rustix::io::Errno;

use super::slot::Slot;

/// What went wrong in a store. Where it concerns one page, `index` is that page's place in the batch.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The caller's two slices are not of one length.
    #[error("{slots} slots for {pages} pages: a batch has one slot for each page")]
    Shape {
        /// Pages in the batch.
        pages: usize,
        /// Slots in the batch.
        slots: usize,
    },
    /// The store holds as much as it may.
    #[error(
        "the {store} store is full: it may hold {limit} bytes. Give it a larger limit, or evict fewer pages"
    )]
    Full {
        /// Which store.
        store: &'static str,
        /// The most it may hold, in bytes.
        limit: u64,
    },
    /// Memory for the store cannot be had.
    #[error(
        "the {store} store cannot have {bytes} bytes of memory: free some on the host, or raise its limits"
    )]
    Memory {
        /// Which store.
        store: &'static str,
        /// How many bytes were asked for.
        bytes: u64,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// The slot is not one of this store's, or was freed.
    #[error("page {index} of the batch: the {store} store keeps nothing at {slot}")]
    NoSuchPage {
        /// Which store.
        store: &'static str,
        /// Which page of the batch.
        index: usize,
        /// What was asked for.
        slot: Slot,
    },
    /// What is stored no longer unpacks to a page.
    #[error("page {index} of the batch: what the {store} store keeps at {slot} no longer unpacks to a page")]
    Damaged {
        /// Which store.
        store: &'static str,
        /// Which page of the batch.
        index: usize,
        /// Where it was kept.
        slot: Slot,
    },
    /// The store keeps no content.
    #[error("page {index} of the batch: the {store} store discards what it is given, so nothing comes back")]
    Discarded {
        /// Which store.
        store: &'static str,
        /// Which page of the batch.
        index: usize,
    },
    /// A system call on the store's file failed.
    #[error("{attempt} byte {offset} of the {store} store, for page {index} of the batch")]
    Io {
        /// Which store.
        store: &'static str,
        /// `reading at` or `writing at`.
        attempt: &'static str,
        /// The first page of the batch that it concerns.
        index: usize,
        /// Where in the file.
        offset: u64,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// A system call on the store's file stopped within a page and would not go on.
    #[error(
        "{attempt} byte {offset} of the {store} store, for page {index} of the batch: {done} of {wanted} bytes, \
         and then no more. Is its file system full, or its file cut short?"
    )]
    Short {
        /// Which store.
        store: &'static str,
        /// `reading at` or `writing at`.
        attempt: &'static str,
        /// The page of the batch that is not whole.
        index: usize,
        /// Where in the file the call began.
        offset: u64,
        /// How many bytes it was to move.
        wanted: usize,
        /// How many it moved.
        done: usize,
    },
    /// The store only gives back what is in it.
    #[error("the {store} store takes no pages: it is what was stored before")]
    ReadOnly {
        /// Which store.
        store: &'static str,
    },
    /// The store has died, and everything in it.
    #[error("the {store} store has died: nothing it kept can be had")]
    Dead {
        /// Which store.
        store: &'static str,
    },
}

impl StoreError {
    /// The page of the batch that the error is about, the first if there are several; `None` if it is about the
    /// whole batch.
    pub fn index(&self) -> Option<usize> {
        match self {
            Self::NoSuchPage { index, .. }
            | Self::Damaged { index, .. }
            | Self::Discarded { index, .. }
            | Self::Io { index, .. }
            | Self::Short { index, .. } => Some(*index),
            Self::Shape { .. }
            | Self::Full { .. }
            | Self::Memory { .. }
            | Self::ReadOnly { .. }
            | Self::Dead { .. } => None,
        }
    }
}
