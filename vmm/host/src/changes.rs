//! Changes to the host: announced, and undone on every way out.
//!
//! | way out | who undoes |
//! | --- | --- |
//! | return, error, `?`, panic | [`HostChanges`] as it is dropped, in reverse order |
//! | Ctrl-C, SIGTERM, SIGHUP | the same: the run's thread sees [`super::signals::Cancel`] and returns |
//! | SIGKILL, abort, `exit`, out of memory | the [guardian](super::guardian), after the death |
//! | an undo that fails here | the guardian tries again after the run's end: a swap device then is empty |
//! | both killed, as at the end of a PID namespace | the next zapscope, by the [log](super::change_log) |
//!
//! Nothing is started and nothing changed before the first change is asked for. A thread waits for the guardian's death and
//! has another one take its place.

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
use super::guardian::{Guardian, GuardianError, GuardianProgram};
use super::guardian_message::Request;
use super::switch_file::{read_switch, write_switch};
use super::undo::{UndoAction, UndoError, Undone};
use crate::HostChange;
use crate::in_initial_pid_namespace;

use guest_mem::with_causes;

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

/// What became of a switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switched {
    /// The change, to undo it early; `None` if the switch said so already.
    pub change: Option<ChangeId>,
    /// What it says now: the kernel may grant less, as with `nr_hugepages`.
    pub now: String,
}

/// The changes this run made to its host and has not undone.
pub struct HostChanges(Arc<Mutex<State>>);

struct State {
    program: GuardianProgram,
    directories: Vec<PathBuf>,
    guardian: Option<Guardian>,
    /// Whether a thread waits for the guardian's death.
    watched: bool,
    log: Option<ChangeLog>,
    outstanding: Vec<(ChangeId, UndoAction)>,
    made: Vec<HostChange>,
    /// Of this run and no other, in any PID namespace: what it makes is named by it.
    token: String,
    last: u64,
    said: BTreeSet<String>,
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
        Self::noted_in(directories(), program, announce)
    }

    /// The same with its log in one of these directories.
    pub(crate) fn noted_in(
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

    /// A name for what this run makes on the host, which no other run gives.
    pub fn unique_name(&self) -> String {
        format!("zapscope-{}", self.lock().token)
    }

    /// Sets a switch. One that says `value` already is left alone.
    ///
    /// # Errors
    /// [`ChangeError`]; the switch says then what it said before.
    pub fn change_sysfs(
        &self,
        path: impl AsRef<Path>,
        value: &str,
        why: &str,
    ) -> Result<Switched, ChangeError> {
        // The guardian has another working directory.
        let path = &std::path::absolute(path.as_ref()).unwrap_or_else(|_| path.as_ref().to_owned());
        let read = || read_switch(path).map_err(|source| ChangeError::Read { path: path.clone(), source });
        let old = read()?;
        if old == value {
            return Ok(Switched { change: None, now: old });
        }
        let mut state = self.lock();
        let action = UndoAction::WriteFile { path: path.clone(), value: old.clone(), set: value.to_owned() };
        let change = state.plan(&self.0, action)?;
        // After the plan is noted: of two runs that want the same switch at once, each sees the other.
        if let Some(pid) = state.log.as_ref().and_then(|log| log.who_else_changes(path)) {
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

    /// Has a zram device made, of no size yet. It is removed again whatever happens, also between its
    /// creation and the return of this function.
    ///
    /// # Errors
    /// [`ChangeError::Guardian`].
    pub fn add_zram(&self, why: &str) -> Result<AddedZram, ChangeError> {
        let mut state = self.lock();
        let change = state.next_id();
        state.guard(&self.0)?;
        state.note(&Request::AddZram { id: change.0 });
        let added = state.guard(&self.0)?.add_zram(change.0);
        let (number, diskseq) = match added {
            Ok(made) => made,
            Err(error) => {
                state.add_unheard(change, &error);
                return Err(error.into());
            }
        };
        state.outstanding.push((change, UndoAction::RemoveZram { number, diskseq }));
        state.say(&format!("host change: made zram{number} ({why})"));
        state.record(HostChange::Zram { device: format!("/dev/zram{number}"), why: why.to_owned() });
        Ok(AddedZram { change, number })
    }

    /// Makes a cgroup that must not exist yet, for processes of the group whose directory is `home`, to which they are
    /// moved back when it is removed.
    ///
    /// # Errors
    /// [`ChangeError`].
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

    /// Writes down how a change will be undone. Call it *before* making the change; announce it yourself.
    ///
    /// # Errors
    /// [`ChangeError::Guardian`]: then do not make the change.
    pub fn plan(&self, action: UndoAction) -> Result<ChangeId, ChangeError> {
        self.lock().plan(&self.0, action)
    }

    /// The change was not made after all, or its owner undid it.
    pub fn forget(&self, change: ChangeId) {
        self.lock().forget(change);
    }

    /// Undoes one change now. A change that is not outstanding is done with.
    ///
    /// # Errors
    /// [`UndoError`]; the change stays outstanding.
    pub fn undo(&self, change: ChangeId) -> Result<(), UndoError> {
        self.lock().undo(change)
    }

    /// Undoes all changes, the last one first, and gives back what could not be undone; the guardian tries
    /// that again when this process has ended.
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

    /// What is outstanding, in the order in which it was changed.
    pub fn outstanding(&self) -> Vec<UndoAction> {
        self.lock().outstanding.iter().map(|(_, action)| action.clone()).collect()
    }

    /// All that was changed, undone or not, in the order in which it was changed; the same again and again once.
    pub fn made(&self) -> Vec<HostChange> {
        self.lock().made.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Whoever panicked with it held has at worst planned a change that was not made, which is harmless.
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
        // One that was ended just now hears nothing; another one hears of all that is outstanding.
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
            // One that is gone will not undo it either, and another one is not told of it.
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

    /// The guardian, alive as far as can be known; another one if it was ended.
    fn guard(&mut self, shared: &Arc<Mutex<Self>>) -> Result<&mut Guardian, GuardianError> {
        let dead = self.guardian.as_mut().map(Guardian::is_dead);
        if dead != Some(false) {
            self.start_guardian(dead.is_some())?;
        }
        if !self.watched {
            self.watched = watch(Arc::downgrade(shared));
        }
        Ok(self.guardian.as_mut().expect("started above, or alive"))
    }

    /// Starts one, and tells it all that is outstanding.
    fn start_guardian(&mut self, instead: bool) -> Result<(), GuardianError> {
        self.guardian = None;
        self.begin_log()?;
        let mut guardian = Guardian::start(&self.program, self.log.as_ref().map(ChangeLog::path))?;
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

    /// Without a log a change is made all the same, unless nobody could undo it then.
    fn begin_log(&mut self) -> Result<(), GuardianError> {
        if self.log.is_some() {
            return Ok(());
        }
        let mortal = !in_initial_pid_namespace();
        match ChangeLog::begin(&self.directories, &self.token) {
            Ok(log) => {
                if mortal {
                    self.say(&format!(
                        "in this PID namespace SIGKILL of its first process ends whoever undoes changes: a later zapscope \
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

    /// A log that takes no more says so once, and is not asked again.
    fn note(&mut self, request: &Request) {
        let Some(log) = &mut self.log else { return };
        if let Err(error) = log.note(request) {
            self.say(&format!("changes are no longer noted for a later zapscope: {}", with_causes(&error)));
            self.log = None;
        }
    }

    /// A guardian that died may have made a device before: it has noted its number then.
    fn add_unheard(&mut self, change: ChangeId, error: &GuardianError) {
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

    /// Says what it has not said yet: a cgroup that is made for each trial is announced once.
    fn say(&mut self, text: &str) {
        if self.said.insert(text.to_owned()) {
            (self.announce)(text);
        }
    }
}

/// Has a thread wait for the guardian's death. Whether it does: without one, the death shows at the next change.
fn watch(state: Weak<Mutex<State>>) -> bool {
    let watch = move || while await_death(&state) {};
    std::thread::Builder::new().name("guardian-watch".to_owned()).spawn(watch).is_ok()
}

/// Waits until the guardian is dead and has another one take its place. False when there is none to wait for.
fn await_death(shared: &Weak<Mutex<State>>) -> bool {
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
    // Dismissed, or replaced by whoever made a change meanwhile.
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

/// `4711-5eed0ddba11`: no other run has it, in whatever PID namespace.
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
