//! Progress on standard error: the present row, and messages about the rows before it.

use experiment::record::{Row, Verdict};
use experiment::scenario::RowPlan;
use guest_mem::with_causes;
use lab::{NotKept, Progress, describe};
use program::output;

/// Progress on standard error.
#[derive(Default)]
pub struct Shown {
    /// Whether a failure to write rows was reported.
    not_kept: bool,
    /// The number of the present row, from 1.
    number: usize,
    /// The reasons why rows could not run, each with its first row.
    reasons: Vec<(String, usize)>,
}

impl Progress for Shown {
    fn row(&mut self, index: usize, of: usize, row: &RowPlan<'_>) {
        self.number = index + 1;
        output::status(format_args!("[{}/{of}] {}: {}", index + 1, row.case.name, describe(row)));
    }

    fn done(&mut self, row: &Row) {
        if let Some(why) = &row.could_not_run {
            output::progress(could_not_run(&mut self.reasons, self.number, why));
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
                "rows do not reach the disk: {}; the run goes on, and tries again with each row",
                with_causes(why)
            ));
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        output::clear_status();
    }
}

/// The line about row `number`, which could not run. The same reason is given once.
fn could_not_run(said: &mut Vec<(String, usize)>, number: usize, why: &str) -> String {
    if let Some((_, first)) = said.iter().find(|(known, _)| known == why) {
        return format!("  could not run, as row {first}");
    }
    said.push((why.to_owned(), number));
    format!("  could not run: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_given_once() {
        let mut said = Vec::new();
        let rows =
            [(1, "no swap"), (2, "no swap"), (4, "no huge pages"), (5, "no swap"), (6, "no huge pages")];
        let lines = rows.map(|(number, why)| could_not_run(&mut said, number, why));
        assert_eq!(
            lines,
            [
                "  could not run: no swap",
                "  could not run, as row 1",
                "  could not run: no huge pages",
                "  could not run, as row 1",
                "  could not run, as row 4",
            ]
        );
    }
}
