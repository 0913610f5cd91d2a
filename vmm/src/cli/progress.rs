//! Progress on standard error: the row that is being made, and what is to be said of those before.

use crate::output;
use crate::record::{Row, Verdict};
use crate::run::{NotKept, Progress, chain, describe};
use crate::scenario::RowPlan;

/// Progress on standard error.
#[derive(Default)]
pub struct Shown {
    /// Whether rows do not reach the disk, and it was said.
    not_kept: bool,
}

impl Progress for Shown {
    fn row(&mut self, index: usize, of: usize, row: &RowPlan<'_>) {
        output::status(format_args!("[{}/{of}] {}: {}", index + 1, row.case.name, describe(row)));
    }

    fn done(&mut self, row: &Row) {
        if let Some(why) = &row.could_not_run {
            output::progress(format_args!("  could not run: {why}"));
        }
        for checked in &row.expectations {
            if matches!(checked.verdict, Verdict::Fails { .. }) {
                output::progress(format_args!("  EXPECTED {checked}"));
            }
        }
    }

    fn not_kept(&mut self, why: &NotKept) {
        if !std::mem::replace(&mut self.not_kept, true) {
            output::message(format_args!(
                "rows do not reach the disk: {}: free space there; the run goes on, and tries again with each row",
                chain(why)
            ));
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        output::clear_status();
    }
}
