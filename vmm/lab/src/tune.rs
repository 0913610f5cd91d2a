//! Sets the host's switches as the row that is being made needs them.
//!
//! ```text
//!   row: backing, memory ──> Backing::unavailable(host) ──> settings ──> HostChanges ──> the row runs
//!                                       ▲                                    │
//!                 the host as it was ───┴─── switches of other rows undone ──┘
//! ```
//!
//! Each row finds the host as it was, but for what it needs itself: a folio size that one row needs on, another needs off.
//! The pool of hugetlb pages alone stays raised to the end: memory that is given back may not come together again.

use guest_mem::{Backing, HostThp, Knob, Setting, Unavailable, with_causes};

use host::{ChangeId, HostChanges};

/// The settings of the row being made.
pub struct Tuner<'c> {
    changes: &'c HostChanges,
    backing: Option<Backing>,
    set: Vec<(Setting, ChangeId)>,
}

impl<'c> Tuner<'c> {
    /// Nothing is set yet. What is set is undone with the other changes, if not before.
    pub fn new(changes: &'c HostChanges) -> Self {
        Self { changes, backing: None, set: Vec::new() }
    }

    /// Sets the switches that `bytes` in this backing need, and no others.
    ///
    /// # Errors
    /// The switch that could not be set, and the reason; the row then says itself what it lacks.
    pub fn prepare(&mut self, backing: Backing, bytes: u64) -> Result<(), String> {
        if self.backing != Some(backing) {
            self.release()?;
            self.backing = Some(backing);
        }
        let Some(why) = backing.unavailable(bytes, &HostThp::read()) else { return Ok(()) };
        for &setting in why.remedy.settings() {
            self.set(setting, backing)?;
        }
        Ok(())
    }

    /// The settings in force.
    pub fn settings(&self) -> impl Iterator<Item = Setting> + '_ {
        self.set.iter().map(|(setting, _)| *setting)
    }

    fn set(&mut self, setting: Setting, backing: Backing) -> Result<(), String> {
        let (path, wanted) = (setting.knob.path(), setting.text());
        let why = format!("for memory in {backing}, until the end");
        let switched = self
            .changes
            .change_sysfs(&path, &wanted, &why)
            .map_err(|error| format!("--tune: {}", with_causes(&error)))?;
        self.set.extend(switched.change.map(|change| (setting, change)));
        if switched.now == wanted {
            return Ok(());
        }
        Err(format!(
            "--tune: {path} took {} of {wanted}: memory for the rest is used or in pieces; \
             `echo 1 > /proc/sys/vm/compact_memory` may help",
            switched.now
        ))
    }

    /// Undoes the settings that another backing needed.
    fn release(&mut self) -> Result<(), String> {
        let (kept, undone) =
            std::mem::take(&mut self.set).into_iter().partition(|(setting, _)| is_lasting(setting));
        self.set = kept;
        let mut outcome = Ok(());
        for (_, change) in undone.into_iter().rev() {
            if let Err(error) = self.changes.undo(change) {
                outcome = Err(format!("--tune: {}", with_causes(&error)));
            }
        }
        outcome
    }
}

/// The words that follow a remedy which this program can carry out itself.
pub fn offer_of_tune(why: &Unavailable) -> &'static str {
    if why.remedy.settings().is_empty() { "" } else { ", or run with `--tune`" }
}

fn is_lasting(setting: &Setting) -> bool {
    setting.knob == Knob::HugetlbPool
}
