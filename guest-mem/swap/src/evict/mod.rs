//! Pages on their way out.
//!
//! ```text
//!   Evictor::claim(range) ─── Resident -> Leaving, write-protected                                        claimed.rs
//!     └─ Claimed::store() ─── copied out, checksum, zero or Store::put     the guest reads on; a write keeps its page
//!          └─ Packed::drop_pages() ── Leaving -> Stored | Zero, dropped    those that were written to stay  packed.rs
//! ```
//!
//! Three steps and not one, because two of them take translations from secondary MMUs (write protection, and the drop):
//! whoever announces invalidations puts a bracket around each. A step that is not followed by the next undoes itself.
//!
//! All that is kept of a claim is as long as the claim: a single page costs what a single page takes.

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
