//! Changes to the host, which are announced and undone on every way out.
//!
//! | way out | undone by |
//! | --- | --- |
//! | return, error, `?`, panic | [`HostChanges`] as it is dropped, in reverse order |
//! | Ctrl-C, SIGTERM, SIGHUP | the same: the run's thread checks [`super::signals::Cancel`] and returns |
//! | SIGKILL, abort, `exit`, out of memory | the [guardian](super::guardian), when the process has ended |
//! | an undo that fails here | the guardian, again, after the run's end: by then a swap device is empty |
//! | both killed, as at the end of a PID namespace | the next zapscope, by the [log](super::change_log) |
//!
//! Nothing is started before the first change. A thread waits for the end of the guardian, and starts another one then.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::change_error::ChangeError;
use super::change_log::{ChangeLog, directories};
use super::guardian::{Guardian, GuardianError, GuardianProgram, this_program};
use super::guardian_message::Request;
use super::switch_file::{read_switch, write_switch};
use super::undo::{UndoAction, UndoError, Undone};
use crate::HostChange;
use crate::in_initial_pid_namespace;

use guest_mem::with_causes;

/// Receives the announcements of changes and undoings.
pub type Announce = Box<dyn FnMut(&str) + Send>;

/// The identity of an outstanding change.
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

/// The result of changing a switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switched {
    /// The change, to undo it early; `None` if the switch had this value already.
    pub change: Option<ChangeId>,
    /// The value now: the kernel may grant less, as with `nr_hugepages`.
    pub now: String,
}

/// The changes of this run to the host.
pub struct HostChanges(Arc<Mutex<State>>);

struct State {
    program: GuardianProgram,
    directories: Vec<PathBuf>,
    guardian: Option<Guardian>,
    /// Whether a thread waits for the guardian's end.
    watched: bool,
    log: Option<ChangeLog>,
    outstanding: Vec<(ChangeId, UndoAction)>,
    made: Vec<HostChange>,
    /// Unique to this run, in any PID namespace: part of the names of what it makes.
    token: String,
    last: u64,
    /// Texts that were announced.
    said: BTreeSet<String>,
    announce: Announce,
}

impl HostChanges {
    /// No changes yet. `announce` receives each change and each undoing; it must not panic.
    pub fn new(announce: impl FnMut(&str) + Send + 'static) -> Self {
        Self::logged_in(directories(), this_program, announce)
    }

    /// The same with another guardian program, and its log in one of these directories.
    fn logged_in(
        directories: Vec<PathBuf>,
        program: GuardianProgram,
        announce: impl FnMut(&str) + Send + 'static,
    ) -> Self {
        Self(Arc::new(Mutex::new(State {
            program,
            directories,
            guardian: None,
            watched: false,
            log: None,
            outstanding: Vec::new(),
            made: Vec::new(),
            token: token(),
            last: 0,
            said: BTreeSet::new(),
            announce: Box::new(announce),
        })))
    }

    /// A name for an object of this run on the host, which no other run uses.
    pub fn unique_name(&self) -> String {
        format!("zapscope-{}", self.lock().token)
    }

    /// Sets a switch, unless it has this value already.
    ///
    /// # Errors
    /// [`ChangeError`]; the switch then has its old value.
    pub fn change_sysfs(
        &self,
        path: impl AsRef<Path>,
        value: &str,
        why: &str,
    ) -> Result<Switched, ChangeError> {
        // Absolute, because the guardian has another working directory.
        let path = &std::path::absolute(path.as_ref()).unwrap_or_else(|_| path.as_ref().to_owned());
        let read = || read_switch(path).map_err(|source| ChangeError::Read { path: path.clone(), source });
        let old = read()?;
        if old == value {
            return Ok(Switched { change: None, now: old });
        }
        let mut state = self.lock();
        let action = UndoAction::WriteFile { path: path.clone(), value: old.clone(), set: value.to_owned() };
        let change = state.plan(&self.0, action)?;
        // After the plan is in the log: of two runs that want the same switch at once, each finds the other.
        if let Some(pid) = state.log.as_ref().and_then(|log| log.other_run_that_changes(path)) {
            state.forget(change);
            return Err(ChangeError::Taken { path: path.clone(), pid });
        }
        state.say(&format!("host change: {}: {old} -> {value} ({why})", path.display()));
        if let Err(source) = write_switch(path, value) {
            state.forget(change);
            return Err(ChangeError::Write { path: path.clone(), value: value.to_owned(), source });
        }
        let now = read()?;
        let (path, why) = (path.display().to_string(), why.to_owned());
        state.record(HostChange::Switch { path, from: old, to: now.clone(), why });
        Ok(Switched { change: Some(change), now })
    }

    /// Makes a zram device, of no size yet. It is removed on every way out, also on one between its creation and the return
    /// of this function.
    pub fn add_zram(&self, why: &str) -> Result<AddedZram, ChangeError> {
        let mut state = self.lock();
        let change = state.next_id();
        state.guard(&self.0)?;
        state.note(&Request::AddZram { id: change.0 });
        let added = state.guard(&self.0)?.add_zram(change.0);
        let (number, diskseq) = match added {
            Ok(made) => made,
            Err(error) => {
                state.add_unreported(change, &error);
                return Err(error.into());
            }
        };
        state.outstanding.push((change, UndoAction::RemoveZram { number, diskseq }));
        state.say(&format!("host change: made zram{number} ({why})"));
        state.record(HostChange::Zram { device: format!("/dev/zram{number}"), why: why.to_owned() });
        Ok(AddedZram { change, number })
    }

    /// Makes a cgroup, which must not exist yet, for processes of the group `home`, to which they are moved back when it is
    /// removed.
    pub fn make_cgroup(
        &self,
        path: impl Into<PathBuf>,
        home: impl Into<PathBuf>,
        why: &str,
    ) -> Result<ChangeId, ChangeError> {
        let path = path.into();
        if path.exists() {
            return Err(ChangeError::Cgroup { path, source: io::ErrorKind::AlreadyExists.into() });
        }
        let mut state = self.lock();
        let change =
            state.plan(&self.0, UndoAction::RemoveCgroup { path: path.clone(), home: home.into() })?;
        state.say(&format!("host change: made cgroup {} ({why})", path.display()));
        match fs::create_dir(&path) {
            Ok(()) => {
                state.record(HostChange::Cgroup { path: path.display().to_string(), why: why.to_owned() });
                Ok(change)
            }
            Err(source) => {
                state.forget(change);
                Err(ChangeError::Cgroup { path, source })
            }
        }
    }

    /// Undoes one change now, if it is outstanding.
    ///
    /// # Errors
    /// [`UndoError`]; the change stays outstanding.
    pub fn undo(&self, change: ChangeId) -> Result<(), UndoError> {
        self.lock().undo(change)
    }

    /// Undoes all changes, the last one first; returns those that cannot be undone, which the guardian tries again when this
    /// process has ended.
    pub fn undo_all(&self) -> Vec<UndoError> {
        let mut state = self.lock();
        let changes: Vec<_> = state.outstanding.iter().rev().map(|(change, _)| *change).collect();
        let failures: Vec<_> = changes.into_iter().filter_map(|change| state.undo(change).err()).collect();
        for failure in &failures {
            state.say(&format!("{failure} ({}); tried again when zapscope has ended", failure.source));
        }
        if failures.is_empty() {
            if let Some(guardian) = state.guardian.take() {
                guardian.dismiss();
            }
            state.log.take().into_iter().for_each(ChangeLog::end);
        }
        failures
    }

    /// The outstanding changes, in the order in which they were made.
    pub fn outstanding(&self) -> Vec<UndoAction> {
        self.lock().outstanding.iter().map(|(_, action)| action.clone()).collect()
    }

    /// All changes, undone or not, in the order in which they were made; equal ones once.
    pub fn made(&self) -> Vec<HostChange> {
        self.lock().made.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // A panic with the lock held leaves at worst a planned change that was not made, which is harmless.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn plan(&mut self, shared: &Arc<Mutex<Self>>, action: UndoAction) -> Result<ChangeId, ChangeError> {
        let change = self.next_id();
        self.guard(shared)?;
        let request = Request::Plan { id: change.0, action: action.clone() };
        self.note(&request);
        let told = self.guard(shared)?.tell(&request);
        self.outstanding.push((change, action));
        // If the guardian ended just now, a new one receives all outstanding changes.
        if told.is_err()
            && let Err(error) = self.start_guardian(true)
        {
            self.forget(change);
            return Err(error.into());
        }
        Ok(change)
    }

    fn forget(&mut self, change: ChangeId) {
        self.outstanding.retain(|(known, _)| *known != change);
        self.note(&Request::Forget { id: change.0 });
        if let Some(guardian) = &mut self.guardian {
            // A guardian that has ended will not undo it, and a new one does not receive it.
            let _ = guardian.tell(&Request::Forget { id: change.0 });
        }
    }

    fn undo(&mut self, change: ChangeId) -> Result<(), UndoError> {
        let Some(action) =
            self.outstanding.iter().find(|(known, _)| *known == change).map(|(_, action)| action.clone())
        else {
            return Ok(());
        };
        match action.perform()? {
            Undone::Restored => self.say(&format!("host change undone: {action}")),
            Undone::LeftAlone(now) => {
                self.say(&format!("did not {action}: somebody has set it to '{now}' since, and it stays so"));
            }
        }
        self.forget(change);
        Ok(())
    }

    /// The guardian; a new one if it has ended.
    fn guard(&mut self, shared: &Arc<Mutex<Self>>) -> Result<&mut Guardian, GuardianError> {
        let dead = self.guardian.as_mut().map(Guardian::is_dead);
        if dead != Some(false) {
            self.start_guardian(dead.is_some())?;
        }
        if !self.watched {
            self.watched = watch(Arc::downgrade(shared));
        }
        Ok(self.guardian.as_mut().expect("it was started above, or runs"))
    }

    /// Starts a guardian, and sends it all outstanding changes. `instead`: of one that has ended.
    fn start_guardian(&mut self, instead: bool) -> Result<(), GuardianError> {
        self.guardian = None;
        self.begin_log()?;
        let mut guardian = Guardian::start(self.program, self.log.as_ref().map(ChangeLog::path))?;
        for (change, action) in &self.outstanding {
            guardian.tell(&Request::Plan { id: change.0, action: action.clone() })?;
        }
        if instead {
            let pid = guardian.pid();
            self.say(&format!(
                "the process that undoes changes after a crash was ended; another one took its place (pid {pid})"
            ));
        }
        self.guardian = Some(guardian);
        Ok(())
    }

    /// Begins the log. Changes are made without one, unless the guardian does not outlive the PID namespace.
    fn begin_log(&mut self) -> Result<(), GuardianError> {
        if self.log.is_some() {
            return Ok(());
        }
        let mortal = !in_initial_pid_namespace();
        match ChangeLog::begin(&self.directories, &self.token) {
            Ok(log) => {
                if mortal {
                    self.say(&format!(
                        "in this PID namespace SIGKILL of its first process ends the process that undoes changes: a later zapscope \
                         that finds {} undoes them",
                        log.path().display()
                    ));
                }
                self.log = Some(log);
                Ok(())
            }
            Err(error) if mortal => Err(GuardianError::Mortal(error)),
            Err(_) => Ok(()),
        }
    }

    /// Appends to the log; after an error, which is announced, the log is not used any more.
    fn note(&mut self, request: &Request) {
        let Some(log) = &mut self.log else { return };
        if let Err(error) = log.note(request) {
            self.say(&format!("changes are no longer noted for a later zapscope: {}", with_causes(&error)));
            self.log = None;
        }
    }

    /// A guardian that has ended may have made the device before: then its number is in the log.
    fn add_unreported(&mut self, change: ChangeId, error: &GuardianError) {
        let noted = self.log.as_mut().and_then(|log| log.outstanding().ok()).unwrap_or_default();
        let action = noted.actions.into_iter().find(|(id, _)| *id == change.0);
        match (action, error) {
            (Some((_, action)), _) => self.outstanding.push((change, action)),
            (None, GuardianError::Gone(_)) => {}
            (None, _) => self.note(&Request::Forget { id: change.0 }),
        }
    }

    fn record(&mut self, change: HostChange) {
        if !self.made.contains(&change) {
            self.made.push(change);
        }
    }

    fn next_id(&mut self) -> ChangeId {
        self.last += 1;
        ChangeId(self.last)
    }

    /// Announces a text once: a cgroup, for example, is made for each trial.
    fn say(&mut self, text: &str) {
        if self.said.insert(text.to_owned()) {
            (self.announce)(text);
        }
    }
}

/// Starts a thread that waits for the guardian's end; returns whether it runs. Without it the next change notices the end.
fn watch(state: Weak<Mutex<State>>) -> bool {
    let watch = move || while await_end(&state) {};
    std::thread::Builder::new().name("guardian-watch".to_owned()).spawn(watch).is_ok()
}

/// Waits for the guardian's end and starts another one. False when there is no guardian to wait for.
fn await_end(shared: &Weak<Mutex<State>>) -> bool {
    let end = |state: &mut State| {
        state.watched = false;
        false
    };
    let death = {
        let Some(shared) = shared.upgrade() else { return false };
        let mut state = lock(&shared);
        match state.guardian.as_ref().map(Guardian::death) {
            Some(Some(death)) => death,
            Some(None) | None => return end(&mut state),
        }
    };
    while matches!(rustix::event::poll(&mut [PollFd::new(&death, PollFlags::IN)], None), Err(Errno::INTR)) {}
    let Some(shared) = shared.upgrade() else { return false };
    let mut state = lock(&shared);
    // Dismissed, or replaced when a change was made meanwhile.
    if !state.guardian.as_mut().is_some_and(Guardian::is_dead) {
        return state.guardian.is_some() || end(&mut state);
    }
    match state.start_guardian(true) {
        Ok(()) => true,
        Err(error) => {
            state.say(&format!(
                "the process that undoes changes after a crash was ended, and no other can be started: {}",
                with_causes(&error)
            ));
            end(&mut state)
        }
    }
}

/// `4711-5eed0ddb`: unique to this run, in any PID namespace.
fn token() -> String {
    format!("{}-{:08x}", std::process::id(), RandomState::new().hash_one(()) as u32)
}

impl Drop for HostChanges {
    fn drop(&mut self) {
        self.undo_all();
    }
}

impl fmt::Debug for HostChanges {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("HostChanges").field("outstanding", &self.outstanding()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
