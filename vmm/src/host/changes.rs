//! Changes to the host: announced, and undone on every way out.
//!
//! | way out | who undoes |
//! | --- | --- |
//! | return, error, `?`, panic | [`HostChanges`] as it is dropped, in reverse order |
//! | Ctrl-C, SIGTERM, SIGHUP | the same: the run's thread sees [`super::signals::Cancel`] and returns |
//! | SIGKILL, abort, `exit`, out of memory | the [guardian](super::guardian), after the death |
//! | an undo that fails here | the guardian tries again after the run's end: a swap device then is empty |
//!
//! Nothing is started and nothing changed before the first change is asked for.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::guardian::{Guardian, GuardianError, GuardianProgram, Request};
use super::root::chosen_word;
use super::undo::{UndoAction, UndoError, write_switch};
use crate::exit::{Class, Classified};
use crate::tap::{Tracefs, TracefsError};

/// Where changes and undoings are announced.
pub type Announce = Box<dyn FnMut(&str) + Send>;

/// One change that is outstanding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangeId(u64);

/// A zram device made for this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddedZram {
    /// The change, to undo it early.
    pub change: ChangeId,
    /// The device's number.
    pub number: u32,
}

/// A change that was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The old value could not be read, so it could not be restored.
    #[error("cannot read {path} and could not restore it later, so it is not changed")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The new value was not accepted.
    #[error("cannot write '{value}' to {path} (root may be needed; by hand: echo {value} > {path})")]
    Write {
        /// The file.
        path: PathBuf,
        /// The value.
        value: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The cgroup exists already or could not be made.
    #[error("cannot make cgroup {path} (root or a delegated parent cgroup is needed)")]
    Cgroup {
        /// Its directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No instance of tracefs.
    #[error(transparent)]
    TraceInstance(TracefsError),
    /// Nobody could undo it after a crash.
    #[error(transparent)]
    Guardian(#[from] GuardianError),
}

impl Classified for ChangeError {
    fn class(&self) -> Class {
        match self {
            Self::Read { source, .. } | Self::Write { source, .. } | Self::Cgroup { source, .. } => {
                Class::of_refused_io(source)
            }
            Self::TraceInstance(error) => Class::of_refusal(error.source),
            Self::Guardian(error) => error.class(),
        }
    }
}

/// The changes this run made to its host and has not undone.
pub struct HostChanges {
    program: GuardianProgram,
    guardian: Option<Guardian>,
    outstanding: Vec<(ChangeId, UndoAction)>,
    last: u64,
    announce: Announce,
}

impl HostChanges {
    /// No changes yet. `announce` hears of each change and each undoing; it must not panic.
    pub fn new(announce: impl FnMut(&str) + Send + 'static) -> Self {
        Self::guarded_by(GuardianProgram::default(), announce)
    }

    /// The same with a guardian that is not this program's own, for a program whose `main` has no
    /// [`super::guardian_main::run_if_asked`].
    pub fn guarded_by(program: GuardianProgram, announce: impl FnMut(&str) + Send + 'static) -> Self {
        Self { program, guardian: None, outstanding: Vec::new(), last: 0, announce: Box::new(announce) }
    }

    /// Sets a switch and gives back what it says then: the kernel may grant less, as with `nr_hugepages`.
    /// A switch that says `value` already is left alone.
    pub fn change_sysfs(
        &mut self,
        path: impl AsRef<Path>,
        value: &str,
        why: &str,
    ) -> Result<String, ChangeError> {
        // The guardian has another working directory.
        let path = &std::path::absolute(path.as_ref()).unwrap_or_else(|_| path.as_ref().to_owned());
        let old = read_switch(path)?;
        if old == value {
            return Ok(old);
        }
        let action = UndoAction::WriteFile { path: path.clone(), value: old.clone() };
        let change = self.plan(action)?;
        self.say(&format!("host change: {}: {old} -> {value} ({why})", path.display()));
        if let Err(source) = write_switch(path, value) {
            self.forget(change);
            return Err(ChangeError::Write { path: path.clone(), value: value.to_owned(), source });
        }
        read_switch(path)
    }

    /// Has a zram device made, of no size yet. It is removed again whatever happens, also between its
    /// creation and the return of this function.
    pub fn add_zram(&mut self, why: &str) -> Result<AddedZram, ChangeError> {
        let change = self.next_id();
        let (number, diskseq) = self.guardian()?.add_zram(change.0)?;
        self.outstanding.push((change, UndoAction::RemoveZram { number, diskseq }));
        self.say(&format!("host change: made zram{number} ({why})"));
        Ok(AddedZram { change, number })
    }

    /// Makes a cgroup that must not exist yet.
    pub fn make_cgroup(&mut self, path: impl Into<PathBuf>, why: &str) -> Result<ChangeId, ChangeError> {
        let path = path.into();
        if path.exists() {
            return Err(ChangeError::Cgroup { path, source: io::ErrorKind::AlreadyExists.into() });
        }
        let change = self.plan(UndoAction::RemoveCgroup { path: path.clone() })?;
        self.say(&format!("host change: made cgroup {} ({why})", path.display()));
        match fs::create_dir(&path) {
            Ok(()) => Ok(change),
            Err(source) => {
                self.forget(change);
                Err(ChangeError::Cgroup { path, source })
            }
        }
    }

    /// Makes a tracefs instance, and gives back its name.
    pub fn make_trace_instance(&mut self, why: &str) -> Result<String, ChangeError> {
        let name = format!("zapscope-{}-{}", std::process::id(), self.last);
        let change = self.plan(UndoAction::RemoveTraceInstance { name: name.clone() })?;
        match Tracefs::open().and_then(|tracefs| tracefs.make_instance(&name)) {
            Ok(()) => {
                self.say(&format!("host change: made the tracefs instance {name} ({why})"));
                Ok(name)
            }
            Err(source) => {
                self.forget(change);
                Err(ChangeError::TraceInstance(source))
            }
        }
    }

    /// Writes down how a change will be undone. Call it *before* making the change; announce it yourself.
    pub fn plan(&mut self, action: UndoAction) -> Result<ChangeId, ChangeError> {
        let change = self.next_id();
        self.guardian()?.tell(&Request::Plan { id: change.0, action: action.clone() })?;
        self.outstanding.push((change, action));
        Ok(change)
    }

    /// The change was not made after all, or its owner undid it.
    pub fn forget(&mut self, change: ChangeId) {
        self.outstanding.retain(|(known, _)| *known != change);
        if let Some(guardian) = &mut self.guardian {
            // A guardian that is gone will not undo it either.
            let _ = guardian.tell(&Request::Forget { id: change.0 });
        }
    }

    /// Undoes one change now. A change that is not outstanding is done with.
    pub fn undo(&mut self, change: ChangeId) -> Result<(), UndoError> {
        let Some(action) =
            self.outstanding.iter().find(|(known, _)| *known == change).map(|(_, action)| action.clone())
        else {
            return Ok(());
        };
        match action.perform() {
            Ok(()) => {
                self.say(&format!("host change undone: {action}"));
                self.forget(change);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Undoes all changes, the last one first, and gives back what could not be undone; the guardian tries
    /// that again when this process has ended.
    pub fn undo_all(&mut self) -> Vec<UndoError> {
        let changes: Vec<_> = self.outstanding.iter().rev().map(|(change, _)| *change).collect();
        let failures: Vec<_> = changes.into_iter().filter_map(|change| self.undo(change).err()).collect();
        for failure in &failures {
            self.say(&format!("{failure} ({}); tried again when zapscope has ended", failure.source));
        }
        if failures.is_empty()
            && let Some(guardian) = self.guardian.take()
        {
            guardian.dismiss();
        }
        failures
    }

    /// What is outstanding, in the order in which it was changed.
    pub fn outstanding(&self) -> impl Iterator<Item = &UndoAction> {
        self.outstanding.iter().map(|(_, action)| action)
    }

    fn guardian(&mut self) -> Result<&mut Guardian, GuardianError> {
        match &mut self.guardian {
            Some(guardian) => Ok(guardian),
            none => Ok(none.insert(Guardian::start(&self.program)?)),
        }
    }

    fn next_id(&mut self) -> ChangeId {
        self.last += 1;
        ChangeId(self.last)
    }

    fn say(&mut self, text: &str) {
        (self.announce)(text);
    }
}

impl Drop for HostChanges {
    fn drop(&mut self) {
        self.undo_all();
    }
}

impl fmt::Debug for HostChanges {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("HostChanges").field("outstanding", &self.outstanding).finish_non_exhaustive()
    }
}

/// The value of a switch: the bracketed word if it shows one, else the whole text.
fn read_switch(path: &Path) -> Result<String, ChangeError> {
    let text =
        fs::read_to_string(path).map_err(|source| ChangeError::Read { path: path.to_owned(), source })?;
    Ok(chosen_word(&text).unwrap_or(text.trim()).to_owned())
}

#[cfg(test)]
#[path = "changes_tests.rs"]
mod tests;
