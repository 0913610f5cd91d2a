//! `zapscope attach`: the invalidations of a VM that another VMM runs. It changes nothing, except by `--pageout`.

mod account;
mod counters;
mod holder;
mod memory;
mod pageout;
mod report;
mod session;

pub use holder::Holder;
pub use memory::guest_memory;

pub(crate) use counters::Readable;
pub(crate) use memory::Memory;
pub(crate) use pageout::page_out;
pub(crate) use report::{Ended, Record, columns, heading, line};
pub(crate) use session::{Session, SessionError, Span};
