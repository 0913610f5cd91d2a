//! `zapscope attach`: the invalidations of a VM that some other VMM runs. Read-only, unless it is told to push memory out.

mod account;
mod counters;
mod holder;
mod memory;
mod pageout;
mod report;
mod session;

pub use account::{Account, Layout, Parties, SIZES};
pub use counters::{Counters, CountersError, Readable};
pub use holder::{Holder, HolderError};
pub use memory::{Memory, NotMapped, guest_memory};
pub use pageout::{PageoutError, Pushed, page_out};
pub use report::{Ended, Record, columns, heading, line};
pub use session::{Session, SessionError, Span};
