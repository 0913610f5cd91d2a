//! `zapscope attach`: the invalidations of a VM that another VMM runs. It changes nothing, except by `--pageout`.

mod account;
mod counters;
mod holder;
mod memory;
mod pageout;
mod report;
mod session;

pub use counters::Readable;
pub use holder::{Holder, HolderError};
pub use memory::{Memory, NotMapped, guest_memory};
pub use pageout::{PagedOut, PageoutError, page_out};
pub use report::{Ended, Record, columns, heading, line};
pub use session::{Session, SessionError, Span};
