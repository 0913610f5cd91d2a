//! The error of a page that does not come back: not yet, or never.

use guest_mem::Hva;
use uffd::{ResolveError, ResolveKind};

use crate::store::StoreError;

/// A page that cannot be given back. Threads that wait for it still wait, and must not go on.
#[derive(Debug, thiserror::Error)]
#[error("the page at {at} (page {page} of the memory) is lost")]
pub struct Lost {
    /// Its address in this process.
    pub at: Hva,
    /// Its number, from the start of the region.
    pub page: u64,
    /// The reason.
    #[source]
    pub why: LostWhy,
}

/// The reason why a page cannot be given back.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum LostWhy {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the store gave back other content: its checksum is {found:#010x}, not {expected:#010x}")]
    Checksum { expected: u32, found: u32 },
    #[error("it was lost before")]
    Before,
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error("no such memory")]
    Elsewhere,
}

/// A fault that could not be served.
pub(super) enum Obstacle {
    /// Not before another thread has gone on.
    Later,
    Lost(LostWhy),
}

impl From<LostWhy> for Obstacle {
    fn from(why: LostWhy) -> Self {
        Self::Lost(why)
    }
}

impl From<ResolveError> for Obstacle {
    fn from(error: ResolveError) -> Self {
        match error.kind {
            ResolveKind::Changing => Self::Later,
            _ => Self::Lost(LostWhy::Resolve(error)),
        }
    }
}
