//! What takes one change to the host back, as data: it can be kept, printed, and sent to another process.
//!
//! Each action is harmless if the change was never made or is already undone, because it is written down
//! before the change.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::zram;
use crate::tap::tracefs::{self, Tracefs};

/// How long a cgroup may take to notice that its last process is gone.
const CGROUP_TRIES: u32 = 20;
const CGROUP_PAUSE: Duration = Duration::from_millis(50);

/// Takes one change back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "undo", rename_all = "kebab-case", deny_unknown_fields)]
pub enum UndoAction {
    /// Write the old value into a file of sysfs, procfs or a cgroup.
    WriteFile {
        /// The file.
        path: PathBuf,
        /// What it said before.
        value: String,
    },
    /// Stop swapping to a zram device and remove it.
    RemoveZram {
        /// Its number.
        number: u32,
        /// The kernel's serial number of the disk, which is never given twice: the next device of the same
        /// number may be somebody else's. `None` on kernels before 5.15.
        diskseq: Option<u64>,
    },
    /// Move the processes of a cgroup to its parent and remove it.
    RemoveCgroup {
        /// Its directory.
        path: PathBuf,
    },
    /// Remove an instance of tracefs.
    RemoveTraceInstance {
        /// Its name.
        name: String,
    },
}

/// A change that could not be taken back.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}; by hand: {by_hand}")]
pub struct UndoError {
    /// What was tried.
    pub action: String,
    /// The commands that do it.
    pub by_hand: String,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

impl UndoAction {
    /// Does it.
    pub fn perform(&self) -> Result<(), UndoError> {
        let done = match self {
            Self::WriteFile { path, value } => ignore_absent(write_switch(path, value)),
            Self::RemoveZram { number, diskseq } => zram::remove(*number, *diskseq),
            Self::RemoveCgroup { path } => ignore_absent(remove_cgroup(path)),
            Self::RemoveTraceInstance { name } => remove_trace_instance(name),
        };
        done.map_err(|source| UndoError { action: self.to_string(), by_hand: self.by_hand(), source })
    }

    /// The shell commands that do the same.
    pub fn by_hand(&self) -> String {
        match self {
            Self::WriteFile { path, value } => format!("echo '{value}' > {}", path.display()),
            Self::RemoveZram { number, .. } => format!(
                "swapoff /dev/zram{number}; echo 1 > /sys/block/zram{number}/reset; \
                 echo {number} > /sys/class/zram-control/hot_remove"
            ),
            Self::RemoveCgroup { path } => format!("rmdir {}", path.display()),
            Self::RemoveTraceInstance { name } => format!(
                "mount -t tracefs nodev /sys/kernel/tracing; rmdir {}",
                tracefs::instance_for_people(name).display()
            ),
        }
    }
}

impl fmt::Display for UndoAction {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WriteFile { path, value } => write!(out, "write '{value}' back to {}", path.display()),
            Self::RemoveZram { number, .. } => write!(out, "remove zram{number}"),
            Self::RemoveCgroup { path } => write!(out, "remove cgroup {}", path.display()),
            Self::RemoveTraceInstance { name } => write!(out, "remove the tracefs instance {name}"),
        }
    }
}

fn remove_trace_instance(name: &str) -> io::Result<()> {
    let tracefs = Tracefs::open().map_err(|error| io::Error::from(error.source))?;
    tracefs.remove_instance(name).map_err(|error| error.source.into())
}

fn ignore_absent(done: io::Result<()>) -> io::Result<()> {
    match done {
        // ENODEV: a cgroup's file whose cgroup is just being removed.
        Err(error) if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV) => {
            Ok(())
        }
        other => other,
    }
}

/// Writes a switch with one write and never creates it.
pub(crate) fn write_switch(path: &Path, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
    file.write_all(value.as_bytes())
}

fn remove_cgroup(path: &Path) -> io::Result<()> {
    let members = fs::read_to_string(path.join("cgroup.procs"))?;
    if let Some(parent) = path.parent().map(|parent| parent.join("cgroup.procs")) {
        for pid in members.lines() {
            // A process that just ended is no obstacle; any other failure shows in rmdir.
            let _ = write_switch(&parent, pid);
        }
    }
    let mut last = fs::remove_dir(path);
    for _ in 1..CGROUP_TRIES {
        match &last {
            Err(error) if error.kind() == ErrorKind::ResourceBusy => std::thread::sleep(CGROUP_PAUSE),
            _ => break,
        }
        last = fs::remove_dir(path);
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_saying(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("switch");
        fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn an_action_survives_the_way_to_another_process() {
        let path = PathBuf::from("/sys/a \"quoted\"\nname");
        let actions = [
            UndoAction::WriteFile { path, value: "ma\ndvise\\".to_owned() },
            UndoAction::RemoveZram { number: 3, diskseq: Some(11) },
            UndoAction::RemoveCgroup { path: PathBuf::from("/sys/fs/cgroup/x") },
            UndoAction::RemoveTraceInstance { name: "zapscope-1-0".to_owned() },
        ];
        for action in actions {
            let line = serde_json::to_string(&action).unwrap();
            assert!(!line.contains('\n'), "one line an action: {line}");
            assert_eq!(serde_json::from_str::<UndoAction>(&line).unwrap(), action);
        }
        assert!(serde_json::from_str::<UndoAction>(r#"{"undo":"format-disk"}"#).is_err());
    }

    #[test]
    fn the_old_value_is_written_back() {
        let (_dir, path) = file_saying("never-and-longer");
        UndoAction::WriteFile { path: path.clone(), value: "madvise".to_owned() }.perform().unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), "madvise");
    }

    #[test]
    fn what_is_not_there_needs_no_undoing() {
        let (dir, path) = file_saying("");
        fs::remove_file(&path).unwrap();
        UndoAction::WriteFile { path: path.clone(), value: "x".to_owned() }.perform().unwrap();
        assert!(!path.exists(), "an undo never creates a file");
        UndoAction::RemoveCgroup { path: dir.path().join("gone") }.perform().unwrap();
        UndoAction::RemoveZram { number: 4_000_000_000, diskseq: None }.perform().unwrap();
    }

    #[test]
    fn a_failed_undo_says_how_to_do_it_by_hand() {
        let dir = tempfile::tempdir().unwrap();
        let action = UndoAction::WriteFile { path: dir.path().to_owned(), value: "madvise".to_owned() };
        let error = action.perform().unwrap_err().to_string();
        assert!(error.contains("echo 'madvise' > "), "{error}");
    }
}
