//! The receiver of the pages that the guest gives back.

use std::error::Error;

use guest_mem::GpaRange;
use notifier_bridge::Cause;

/// Takes memory away from the guest. Called on the device thread.
pub trait Reclaimer: Send {
    /// Gives the pages of `range`, all of them RAM, back to the host.
    fn reclaim(&mut self, range: GpaRange, cause: Cause) -> Result<(), ReclaimError>;
}

/// Pages that the guest gave back and the host could not take.
#[derive(Debug, thiserror::Error)]
#[error("cannot reclaim guest memory {range}")]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub struct ReclaimError {
    pub range: GpaRange,
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}
