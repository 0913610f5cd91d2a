//! A swap in user space: guest memory that goes to a [`Store`] and comes back through userfaultfd.
//!
//! ```text
//!   Evictor (any number of threads)                                  Pager (one in each handler thread)
//!     claim ─ write-protect ─ copy out ─ Store::put ─ drop             fault ─ window ─ Store::get ─ checksum ─ fill, wake
//!        └────────────────────────> Blocks: the state of each page <────────────────────────┘
//!                                        ▲
//!                       discarded, moved away: userfaultfd's events, or the caller
//!
//!   Store    CompressedStore   LZ4 or zstd, in memory        Swapper   one region, its userfaultfd and its store
//!            FileStore         extents of an unlinked file   Handlers  threads, each with a pager
//!            ImageStore        pages of a file, read only    Clock     finds pages that were not used for a while
//! ```
//!
//! Guarantees: a page comes back as it was when it left, or not at all ([`Lost`]); no write through the mapping gets lost;
//! discarded pages read as zeros. The crate is mechanism only: the caller chooses the pages to evict, the [`Store`] where
//! they go.
//!
//! Not seen: writes of a device, or of direct I/O, to pages that were pinned before they were claimed; and access to shared
//! memory by its file, or by a mapping that is not the region's.

mod address_set;
mod clock;
mod evict;
mod fill;
mod hand_over;
mod handlers;
mod huge;
mod own_drops;
mod pager;
mod reading;
mod runs;
mod state;
mod store;
mod swapper;
mod sys;
mod used;
mod waiting;
mod window;

pub use clock::{Clock, WatchError};
pub use evict::{Claimed, EvictError, Evicted, Evictor, Packed};
pub use hand_over::{HandOverError, Kept};
pub use handlers::{HandlerError, HandlerReport, Handlers, Observer};
pub use pager::{Lost, LostWhy, Pager, Served};
pub use state::{AfterDrop, SwapState};
pub use store::{
    BufferError, Codec, CompressedStore, FileIo, FileStore, FileStoreError, ImageStore, PageBuffer, Slot,
    Store, StoreError, Usage, checksum,
};
pub use swapper::{AttachError, Options, Swapper};
pub use window::{FaultAround, UnknownFaultAround};

#[cfg(test)]
harness::watch_libtest!();
