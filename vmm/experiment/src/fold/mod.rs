//! The sums of a trial's events, from which its row is made: the one account of a row, whether its trials ran or a replay made
//! them up.

mod achieved;
mod kernel;
mod ranges;
mod sums;

pub(crate) use achieved::achieved;
pub use kernel::Account;
pub use ranges::{RANGE_SIZES, RangeSums};
pub(crate) use sums::{Rate, Sums};
