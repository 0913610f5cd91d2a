//! A row of a run's record from its events: the one account of a row, whether its trials ran or a replay made them up.
//!
//! ```text
//!   Event, Event, … ── Sums of a trial ──┐
//!   Event, Event, … ── Sums of a trial ──┴─ pooled: times of all, counts that must agree ── Row
//! ```

use super::notes;
use super::row::Row;
use crate::choice::RowLabel;
use crate::events::Event;
use crate::fold::Sums;

/// The events of a row, folded as they come.
#[derive(Debug, Default)]
pub struct RowFold {
    label: Option<RowLabel>,
    trials: u32,
    /// The trials before the last.
    pooled: Option<Sums>,
    last: Option<Sums>,
}

impl RowFold {
    /// The row of these events.
    ///
    /// # Panics
    /// If the first of them is not the setting of a trial.
    pub fn of(events: impl IntoIterator<Item = Event>) -> Row {
        let mut fold = Self::default();
        events.into_iter().for_each(|event| fold.add(&event));
        fold.row()
    }

    /// Adds the next event.
    ///
    /// # Panics
    /// If it comes before the setting of any trial.
    pub fn add(&mut self, event: &Event) {
        if let Event::Trial(setting) = event {
            self.pool();
            self.label.get_or_insert_with(|| setting.label.clone());
            self.trials += 1;
            self.last = Some(Sums::of(setting));
            return;
        }
        self.last.as_mut().expect("a trial begins with its setting").add(event);
    }

    /// Puts the last trial to those before it.
    fn pool(&mut self) {
        match (&mut self.pooled, self.last.take()) {
            (Some(pooled), Some(last)) => pooled.pool(last),
            (pooled @ None, Some(last)) => *pooled = Some(last),
            (_, None) => {}
        }
    }

    /// The row.
    ///
    /// # Panics
    /// If there was no trial.
    pub fn row(self) -> Row {
        self.row_because(|_| None)
    }

    /// The row. `why` gives the reason for the null of some keys.
    ///
    /// # Panics
    /// If there was no trial.
    pub fn row_because(mut self, why: impl Fn(&str) -> Option<String>) -> Row {
        self.pool();
        let (label, sums) = self.label.zip(self.pooled).expect("a row has a trial");
        notes::row(label, self.trials, &sums, why)
    }
}

#[cfg(test)]
mod tests;
