//! What a run found, for people: a table of its rows, and a paragraph of what they say.
//!
//! Both are pure functions of the run record, so that a record read back tells the same as the run that made
//! it.

mod account;
mod caption;
mod comparison;
#[cfg(any(test, feature = "fixture"))]
pub mod fixture;
pub mod ktap;
mod names;
mod swaps;
mod table;
mod timeline;
mod widths;
mod words;

pub use comparison::comparison;
pub use table::table;
pub use timeline::timeline;
pub use words::words;

#[cfg(test)]
mod tests;
