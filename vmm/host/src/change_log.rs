//! The changes of a run as a file, for the case that whoever would undo them dies with it: SIGKILL of the first process of
//! a PID namespace, or of a whole cgroup, takes the guardian along.
//!
//! ```text
//!   /run/zapscope/PID-TOKEN.changes     one line of JSON each, appended before the change is made
//!     {"boot":"…","pid":4711}
//!     {"plan":{"id":1,"action":{…}}}    run, guardian: the change, and what undoes it
//!     {"forget":{"id":1}}               whoever undid it
//!
//!   run and guardian     hold the file by a shared lock for as long as they live
//!   the next zapscope    takes it by an exclusive lock, which it gets once both are dead, and undoes what is left
//! ```
//!
//! The directory is locked for as long as it takes to make a file in it and lock that, or to look for files whose owners
//! are dead: a file is never seen between its creation and its lock. The last one to leave removes the directory.

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

/// Names another directory than those of [`directories`].
pub const STATE_DIR: &str = "ZAPSCOPE_STATE_DIR";

const SUFFIX: &str = ".changes";
/// Nobody holds a directory for longer than it takes to read some small files.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(2);
/// A log of a long run has some kilobytes.
const LONGEST: u64 = 1 << 24;

/// Changes cannot be noted.
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

/// Where logs are kept, the first that can be used: what the environment names, else the system's place for what does not
/// outlive a boot, else the user's.
pub fn directories() -> Vec<PathBuf> {
    if let Some(named) = environment(STATE_DIR) {
        return vec![named];
    }
    let of_user = environment("XDG_RUNTIME_DIR").map(|directory| directory.join("zapscope"));
    [PathBuf::from("/run/zapscope")].into_iter().chain(of_user).collect()
}

/// The first of these directories in which a log can be made, as far as that shows without making one.
pub fn usable(directories: &[PathBuf]) -> Option<&PathBuf> {
    let writable = |path: &Path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok();
    directories.iter().find(|directory| match directory.metadata() {
        Ok(metadata) => metadata.is_dir() && is_ours(&metadata) && writable(directory),
        Err(_) => directory.parent().is_some_and(writable),
    })
}

/// A variable that names a directory; not where the program has rights that whoever started it lacks.
fn environment(name: &str) -> Option<PathBuf> {
    // SAFETY: takes a number and reads what the kernel gave at the start of the process.
    let has_more_rights = unsafe { libc::getauxval(libc::AT_SECURE) } != 0;
    let path = PathBuf::from(std::env::var_os(name).filter(|_| !has_more_rights)?);
    path.is_absolute().then_some(path)
}

/// The first line of a log.
#[derive(Debug, Serialize, Deserialize)]
struct Heading {
    /// Of the boot in which it was written: a later one has none of the changes.
    boot: String,
    /// Of the run, in its PID namespace.
    pid: u32,
}

/// A log, which its holder has locked.
#[derive(Debug)]
pub(crate) struct ChangeLog {
    file: File,
    path: PathBuf,
}

impl ChangeLog {
    /// Begins one in the first of `directories` that can be used.
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
        let held = Held::of(directory, true)?;
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

    /// Joins in holding one that a run has begun.
    pub(crate) fn join(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        flock(&file, FlockOperation::NonBlockingLockShared)?;
        Ok(Self { file, path: path.to_owned() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a line. It is in the file when this returns, whoever dies then.
    pub(crate) fn note(&mut self, request: &Request) -> Result<(), LogError> {
        self.line(request).map_err(failed("writing", &self.path))
    }

    fn line(&mut self, line: &impl Serialize) -> io::Result<()> {
        let text = to_line(line)?;
        // One write: a process that is killed has written all of a line or nothing of it.
        self.file.write_all(text.as_bytes())
    }

    /// What is outstanding by it, in the order in which it was changed.
    pub(crate) fn outstanding(&mut self) -> io::Result<Noted> {
        read(&mut self.file).map(|(_, noted)| noted)
    }

    /// The pid of another run whose log has a change of this switch outstanding. Its undoing and ours would spoil each
    /// other.
    pub(crate) fn who_else_changes(&self, switch: &Path) -> Option<u32> {
        let directory = self.path.parent()?;
        let _held = Held::of(directory, false).ok()?;
        logs_in(directory).into_iter().filter(|path| *path != self.path).find_map(|path| {
            let (heading, noted) = read(&mut open(&path).ok()?).ok()?;
            let is_it =
                |action: &UndoAction| matches!(action, UndoAction::WriteFile { path, .. } if path == switch);
            let heading = heading.filter(|heading| heading.boot == this_boot())?;
            noted.actions.iter().any(|(_, action)| is_it(action)).then_some(heading.pid)
        })
    }

    /// Nothing is outstanding: removes it, and the directory with the last one.
    pub(crate) fn end(self) {
        let held = self.path.parent().and_then(|directory| Held::of(directory, false).ok());
        let _ = fs::remove_file(&self.path);
        if let Some(held) = held {
            // Where others are noted in it, it stays.
            let _ = fs::remove_dir(&held.path);
        }
    }
}

/// The log of a run that is dead, and its guardian with it.
#[derive(Debug)]
pub(crate) struct Abandoned {
    pub(crate) log: ChangeLog,
    pub(crate) pid: u32,
    pub(crate) noted: Noted,
}

impl Abandoned {
    /// All of them. Those of an earlier boot, and those in which nothing is left to do, are removed.
    pub(crate) fn find(directories: &[PathBuf]) -> Vec<Self> {
        let (mut found, mut empty) = (Vec::new(), Vec::new());
        for directory in directories {
            let Ok(_held) = Held::of(directory, false) else { continue };
            for path in logs_in(directory) {
                let Ok(file) = open(&path) else { continue };
                if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                    continue;
                }
                let mut log = ChangeLog { file, path };
                let Ok((heading, noted)) = read(&mut log.file) else { continue };
                match heading.filter(|heading| heading.boot == this_boot()) {
                    Some(heading) if !noted.is_empty() => found.push(Self { log, pid: heading.pid, noted }),
                    _ => empty.push(log),
                }
            }
        }
        empty.into_iter().for_each(ChangeLog::end);
        found
    }
}

/// What a log says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Noted {
    /// What undoes each change that is outstanding.
    pub(crate) actions: Vec<(u64, UndoAction)>,
    /// zram devices that were to be made, of which nobody noted the number: made or not.
    pub(crate) unheard: Vec<u64>,
}

impl Noted {
    pub(crate) fn is_empty(&self) -> bool {
        self.actions.is_empty() && self.unheard.is_empty()
    }

    fn take(&mut self, request: Request) {
        match request {
            Request::Plan { id, action } => {
                self.unheard.retain(|known| *known != id);
                if !self.actions.iter().any(|(known, _)| *known == id) {
                    self.actions.push((id, action));
                }
            }
            Request::AddZram { id } => self.unheard.push(id),
            Request::Forget { id } => {
                self.unheard.retain(|known| *known != id);
                self.actions.retain(|(known, _)| *known != id);
            }
            Request::Log { .. } | Request::Done => {}
        }
    }
}

/// A last line without its end is of a change that was not made: it is made when the line is written.
fn read(file: &mut File) -> io::Result<(Option<Heading>, Noted)> {
    let mut text = String::new();
    io::Seek::rewind(file)?;
    file.take(LONGEST).read_to_string(&mut text)?;
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let mut lines = whole.lines();
    let heading = lines.next().and_then(|line| serde_json::from_str(line).ok());
    let mut noted = Noted::default();
    lines.filter_map(|line| serde_json::from_str(line).ok()).for_each(|request| noted.take(request));
    Ok((heading, noted))
}

/// Opens a log that is ours: what it says is done with our rights.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).append(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() && is_ours(&metadata) { Ok(file) } else { Err(ErrorKind::PermissionDenied.into()) }
}

/// Whether nobody else can have written it.
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

/// A directory of ours, locked.
struct Held {
    path: PathBuf,
    _lock: File,
}

impl Held {
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
                // Somebody else is in it, or has just removed it.
                Ok(None) if Instant::now() < deadline => std::thread::sleep(PAUSE),
                Err(error) if make && error.kind() == ErrorKind::NotFound && Instant::now() < deadline => {}
                Ok(None) => {
                    return Err(failed("waiting for whoever holds", path)(ErrorKind::TimedOut.into()));
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
        // A directory that was removed meanwhile has no links left.
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
