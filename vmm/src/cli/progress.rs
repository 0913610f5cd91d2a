//! Progress on standard error: a bar on a terminal, a line a row elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::output;
use crate::record::{Row, Verdict};
use crate::run::{NotKept, Progress, chain, describe};
use crate::scenario::RowPlan;

/// Progress on standard error.
pub struct Shown {
    bar: Option<ProgressBar>,
    /// Whether rows do not reach the disk, and it was said.
    not_kept: bool,
}

impl Shown {
    /// For this standard error.
    pub fn new() -> Self {
        let bar = output::messages_go_to_a_terminal().then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template("{spinner} {pos}/{len} {bar:30} {msg} ({elapsed})");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { bar, not_kept: false }
    }

    /// Says something without breaking the bar.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::progress(text)),
            None => output::progress(text),
        }
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Shown {
    fn row(&mut self, index: usize, of: usize, row: &RowPlan<'_>) {
        let what = format!("{}: {}", row.case.name, describe(row));
        match &self.bar {
            Some(bar) => {
                bar.set_length(of as u64);
                bar.set_position(index as u64);
                bar.set_message(what);
            }
            None => output::progress(format_args!("[{}/{of}] {what}", index + 1)),
        }
    }

    fn done(&mut self, row: &Row) {
        if let Some(why) = &row.could_not_run {
            self.say(&format!("  could not run: {why}"));
        }
        for checked in &row.expectations {
            if matches!(checked.verdict, Verdict::Fails { .. }) {
                self.say(&format!("  EXPECTED {checked}"));
            }
        }
    }

    fn not_kept(&mut self, why: &NotKept) {
        if !std::mem::replace(&mut self.not_kept, true) {
            self.say(&format!(
                "zapscope: rows do not reach the disk: {}: free space there; the run goes on, and tries again with each row",
                chain(why)
            ));
        }
    }
}
