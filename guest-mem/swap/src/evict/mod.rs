//! Evicts pages.
//!
//! ```text
//!   Evictor::claim(range) ─── Resident -> Leaving, write-protected                                        claimed.rs
//!     └─ Claimed::store() ─── copied out, checksum, zero or Store::put     the guest may read; a page that is written stays
//!          └─ Packed::drop_pages() ── Leaving -> Stored | Zero, dropped    written pages stay               packed.rs
//! ```
//!
//! There are three steps because two of them take translations from secondary MMUs (write protection, and the drop): the
//! caller announces each in a bracket of its own. A step that is not followed by the next undoes itself.
//!
//! The buffers of a claim are as long as the claim: a claim of one page costs little.

mod claimed;
mod error;
mod evicted;
mod evictor;
mod kernel;
mod packed;

pub use claimed::Claimed;
pub use error::EvictError;
pub use evicted::Evicted;
pub use evictor::Evictor;
pub use packed::Packed;
