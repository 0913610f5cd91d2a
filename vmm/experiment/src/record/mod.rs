//! The run record: what a run found, as `run.json`.
//!
//! Self-contained (host, source revision, the scenario's text, every row), versioned by `schema`, and read
//! again by the commands that come after the run. Keys are added, never renamed: a reader ignores keys it does
//! not know, and takes a key that is missing as null.
//!
//! A value that could not be measured is null with a warning that says why; it is never 0. [`Measured`] has no
//! public way to be null but through [`Warnings`], which takes the reason. A value that was expected and not measured
//! stands with a warning that says so ([`Row::is_expected`]), and nothing is concluded from it.
//!
//! ```
//! use experiment::record::{Measured, Warnings};
//!
//! let mut warnings = Warnings::default();
//! let flushes = match None {
//!     Some(count) => Measured::of(count),
//!     None => warnings.not_measured("remote_tlb_flushes", "this kernel has no such statistic"),
//! };
//! assert_eq!(flushes.get(), None::<u64>);
//! assert!(warnings.explains("remote_tlb_flushes"));
//! ```

mod announced;
mod checked;
mod measured;
mod notes;
mod row;
mod row_fold;
mod run;
mod time;

pub use checked::{Checked, Verdict};
pub use measured::{Measured, Warning, Warnings, saturating_sum};
pub use row::{KeyKind, Row};
pub use row_fold::RowFold;
pub use run::{ENDED, Host, Overhead, RecordError, RunRecord, SCHEMA};
pub use time::utc;
