//! The changes of a run in a file, for the case that the guardian is killed with the run: by SIGKILL of the first process of
//! a PID namespace, or of a whole cgroup.
//!
//! ```text
//!   /run/zapscope/PID-TOKEN.changes     one line of JSON each, appended before the change is made
//!     {"boot":"…","pid":4711}
//!     {"plan":{"id":1,"action":{…}}}    run, guardian: the change, by the action that undoes it
//!     {"forget":{"id":1}}               run, guardian, next zapscope: it is undone
//!
//!   run and guardian     hold a shared lock on the file for as long as they live
//!   the next zapscope    takes an exclusive lock, which it gets when both have ended, and undoes what is left
//! ```
//!
//! The directory is locked while a file is made in it and locked, and while files of ended runs are searched: so a file is
//! never found between its creation and its lock. The last file to be removed takes the directory along.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::guardian_message::{Request, to_line};
use super::root::Root;
use super::undo::UndoAction;

/// The environment variable that names another directory than those of [`directories`].
pub const STATE_DIR: &str = "ZAPSCOPE_STATE_DIR";

const SUFFIX: &str = ".changes";
/// A directory is locked while some small files are read.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(2);
/// The limit on a log. That of a long run has some kilobytes.
const LONGEST: u64 = 1 << 24;

/// The log cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{attempt} {path}")]
pub struct LogError {
    attempt: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn failed(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError {
    let path = path.to_owned();
    move |source| LogError { attempt, path, source }
}

/// The directories for logs, of which the first usable one is used: that of the environment variable; else the system's for
/// runtime data, else the user's.
pub fn directories() -> Vec<PathBuf> {
    if let Some(named) = environment(STATE_DIR) {
        return vec![named];
    }
    let of_user = environment("XDG_RUNTIME_DIR").map(|directory| directory.join("zapscope"));
    [PathBuf::from("/run/zapscope")].into_iter().chain(of_user).collect()
}

/// The first of these directories in which a log can probably be made. Nothing is written.
pub fn usable(directories: &[PathBuf]) -> Option<&PathBuf> {
    let writable = |path: &Path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok();
    directories.iter().find(|directory| match directory.metadata() {
        Ok(metadata) => metadata.is_dir() && is_ours(&metadata) && writable(directory),
        Err(_) => directory.parent().is_some_and(writable),
    })
}

/// A directory named by an environment variable. Ignored if the program has more rights than its caller.
fn environment(name: &str) -> Option<PathBuf> {
    // SAFETY: takes a number, and reads the auxiliary vector of this process.
    let has_more_rights = unsafe { libc::getauxval(libc::AT_SECURE) } != 0;
    let path = PathBuf::from(std::env::var_os(name).filter(|_| !has_more_rights)?);
    path.is_absolute().then_some(path)
}

/// The first line of a log.
#[derive(Debug, Serialize, Deserialize)]
struct Heading {
    /// The boot in which it was written: a later boot has none of the changes.
    boot: String,
    /// The run's PID, in its PID namespace.
    pid: u32,
}

/// A log, locked.
#[derive(Debug)]
pub(crate) struct ChangeLog {
    file: File,
    path: PathBuf,
}

impl ChangeLog {
    /// Begins a log in the first usable one of `directories`.
    pub(crate) fn begin(directories: &[PathBuf], token: &str) -> Result<Self, LogError> {
        let mut last = LogError {
            attempt: "choosing a directory to note changes in",
            path: PathBuf::new(),
            source: ErrorKind::NotFound.into(),
        };
        for directory in directories {
            match Self::begin_in(directory, token) {
                Ok(log) => return Ok(log),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn begin_in(directory: &Path, token: &str) -> Result<Self, LogError> {
        let held = LockedDirectory::of(directory, true)?;
        let path = held.path.join(format!("{token}{SUFFIX}"));
        let made = OpenOptions::new()
            .read(true)
            .append(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path);
        let file = made.map_err(failed("making", &path))?;
        let mut log = Self { file, path };
        let begun = flock(&log.file, FlockOperation::NonBlockingLockShared)
            .map_err(io::Error::from)
            .and_then(|()| log.line(&Heading { boot: this_boot(), pid: std::process::id() }));
        match begun {
            Ok(()) => Ok(log),
            Err(source) => {
                let _ = fs::remove_file(&log.path);
                Err(failed("writing", &log.path)(source))
            }
        }
    }

    /// Opens and locks the log of a run, as its guardian.
    pub(crate) fn join(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        flock(&file, FlockOperation::NonBlockingLockShared)?;
        Ok(Self { file, path: path.to_owned() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a line. It is in the file when this returns.
    pub(crate) fn note(&mut self, request: &Request) -> Result<(), LogError> {
        self.line(request).map_err(failed("writing", &self.path))
    }

    fn line(&mut self, line: &impl Serialize) -> io::Result<()> {
        let text = to_line(line)?;
        // One write: a process that is killed has written the whole line or nothing.
        self.file.write_all(text.as_bytes())
    }

    /// The outstanding changes, in the order in which they were made.
    pub(crate) fn outstanding(&mut self) -> io::Result<Outstanding> {
        read(&mut self.file).map(|(_, outstanding)| outstanding)
    }

    /// The PID of another run with an outstanding change of this switch. Both would restore a wrong value.
    pub(crate) fn other_run_that_changes(&self, switch: &Path) -> Option<u32> {
        let directory = self.path.parent()?;
        let _held = LockedDirectory::of(directory, false).ok()?;
        logs_in(directory).into_iter().filter(|path| *path != self.path).find_map(|path| {
            let (heading, outstanding) = read(&mut open(&path).ok()?).ok()?;
            let is_it =
                |action: &UndoAction| matches!(action, UndoAction::WriteFile { path, .. } if path == switch);
            let heading = heading.filter(|heading| heading.boot == this_boot())?;
            outstanding.actions.iter().any(|(_, action)| is_it(action)).then_some(heading.pid)
        })
    }

    /// Removes the log, in which nothing is outstanding, and the directory with the last log.
    pub(crate) fn end(self) {
        let held = self.path.parent().and_then(|directory| LockedDirectory::of(directory, false).ok());
        let _ = fs::remove_file(&self.path);
        if let Some(held) = held {
            // Fails if there are other logs.
            let _ = fs::remove_dir(&held.path);
        }
    }
}

/// The log of a run that has ended, and its guardian too.
#[derive(Debug)]
pub(crate) struct Abandoned {
    pub(crate) log: ChangeLog,
    pub(crate) pid: u32,
    pub(crate) outstanding: Outstanding,
}

impl Abandoned {
    /// Finds all of them. Those of an earlier boot and those without an outstanding change are removed.
    pub(crate) fn find(directories: &[PathBuf]) -> Vec<Self> {
        let (mut found, mut empty) = (Vec::new(), Vec::new());
        for directory in directories {
            let Ok(_held) = LockedDirectory::of(directory, false) else { continue };
            for path in logs_in(directory) {
                let Ok(file) = open(&path) else { continue };
                if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                    continue;
                }
                let mut log = ChangeLog { file, path };
                let Ok((heading, outstanding)) = read(&mut log.file) else { continue };
                match heading.filter(|heading| heading.boot == this_boot()) {
                    Some(heading) if !outstanding.is_empty() => {
                        found.push(Self { log, pid: heading.pid, outstanding })
                    }
                    _ => empty.push(log),
                }
            }
        }
        empty.into_iter().for_each(ChangeLog::end);
        found
    }
}

/// The outstanding changes by a sequence of requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outstanding {
    /// The actions that undo them.
    pub(crate) actions: Vec<(u64, UndoAction)>,
    /// zram devices that were asked for and whose number is not known: made or not.
    pub(crate) unreported: Vec<u64>,
}

impl Outstanding {
    pub(crate) fn is_empty(&self) -> bool {
        self.actions.is_empty() && self.unreported.is_empty()
    }

    pub(crate) fn take(&mut self, request: Request) {
        match request {
            Request::Plan { id, action } => {
                self.unreported.retain(|known| *known != id);
                if !self.actions.iter().any(|(known, _)| *known == id) {
                    self.actions.push((id, action));
                }
            }
            Request::AddZram { id } => self.unreported.push(id),
            Request::Forget { id } => {
                self.unreported.retain(|known| *known != id);
                self.actions.retain(|(known, _)| *known != id);
            }
            Request::Log { .. } | Request::Done => {}
        }
    }
}

/// A last line without its end is of a change that was not made: changes are made after their line is written.
fn read(file: &mut File) -> io::Result<(Option<Heading>, Outstanding)> {
    let mut text = String::new();
    io::Seek::rewind(file)?;
    file.take(LONGEST).read_to_string(&mut text)?;
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let mut lines = whole.lines();
    let heading = lines.next().and_then(|line| serde_json::from_str(line).ok());
    let mut outstanding = Outstanding::default();
    lines.filter_map(|line| serde_json::from_str(line).ok()).for_each(|request| outstanding.take(request));
    Ok((heading, outstanding))
}

/// Opens a log if it is this user's: its actions are performed with this user's rights.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).append(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() && is_ours(&metadata) { Ok(file) } else { Err(ErrorKind::PermissionDenied.into()) }
}

/// Whether only this user can have written it.
fn is_ours(metadata: &fs::Metadata) -> bool {
    metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0
}

fn logs_in(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut logs: Vec<_> =
        entries.filter(|path| path.to_str().is_some_and(|path| path.ends_with(SUFFIX))).collect();
    logs.sort();
    logs
}

fn this_boot() -> String {
    Root::default().text("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// A directory of this user, locked.
struct LockedDirectory {
    path: PathBuf,
    _lock: File,
}

impl LockedDirectory {
    fn of(path: &Path, make: bool) -> Result<Self, LogError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if make {
                match DirBuilder::new().mode(0o700).create(path) {
                    Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                        return Err(failed("making the directory", path)(error));
                    }
                    _ => {}
                }
            }
            match Self::lock(path) {
                Ok(Some(held)) => return Ok(held),
                // Another process has locked it, or has just removed it.
                Ok(None) if Instant::now() < deadline => std::thread::sleep(PAUSE),
                Err(error) if make && error.kind() == ErrorKind::NotFound && Instant::now() < deadline => {}
                Ok(None) => {
                    return Err(failed("waiting for the lock of", path)(ErrorKind::TimedOut.into()));
                }
                Err(error) => return Err(failed("opening", path)(error)),
            }
        }
    }

    fn lock(path: &Path) -> io::Result<Option<Self>> {
        let flags = libc::O_NOFOLLOW | libc::O_DIRECTORY;
        let lock = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        if !is_ours(&lock.metadata()?) {
            return Err(ErrorKind::PermissionDenied.into());
        }
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
        // A directory that was removed meanwhile has no links.
        let is_there = lock.metadata()?.nlink() > 0;
        if is_there {
            Ok(Some(Self { path: path.to_owned(), _lock: lock }))
        } else {
            Err(ErrorKind::NotFound.into())
        }
    }
}

#[cfg(test)]
mod tests;
