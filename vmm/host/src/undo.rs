//! The undoing of one change to the host, as data: it can be stored, printed, and sent to another process.
//!
//! Each action is harmless if the change was not made or is undone already, because it is written down before the change.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::retry::{is_busy, retry};
use super::switch_file::{read_switch, write_switch};
use super::zram;

/// A cgroup may be busy for a moment after its last process has left.
const CGROUP_TRIES: u32 = 20;
const CGROUP_PAUSE: Duration = Duration::from_millis(50);

/// Undoes one change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "undo", rename_all = "kebab-case", deny_unknown_fields)]
#[expect(missing_docs, reason = "the variants say what each field is")]
pub enum UndoAction {
    /// Write the old value back to a switch, unless it was changed by another process meanwhile.
    WriteFile {
        path: PathBuf,
        value: String,
        /// The value that the change wrote. Of a number the kernel may have granted a part, as of `nr_hugepages`.
        set: String,
    },
    /// Stop swapping to a zram device and remove it.
    RemoveZram {
        number: u32,
        /// The kernel's serial number of the disk, which is never reused: the next device of the same number may be another
        /// program's. `None` on kernels before 5.15.
        diskseq: Option<u64>,
    },
    /// Move the processes of the cgroup `path` back to the group `home`, and remove it.
    RemoveCgroup { path: PathBuf, home: PathBuf },
}

/// The result of an undo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undone {
    /// The change is undone.
    Restored,
    /// Another process has set the switch to this value meanwhile, and it is left so.
    LeftAlone(String),
}

/// A change could not be undone.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}; by hand: {by_hand}")]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub struct UndoError {
    pub action: String,
    pub by_hand: String,
    #[source]
    pub source: io::Error,
}

impl UndoAction {
    /// Performs the action.
    pub fn perform(&self) -> Result<Undone, UndoError> {
        let restored = |()| Undone::Restored;
        let done = match self {
            Self::WriteFile { path, value, set } => restore(path, value, set),
            Self::RemoveZram { number, diskseq } => zram::remove(*number, *diskseq).map(restored),
            Self::RemoveCgroup { path, home } => ignore_absent(remove_cgroup(path, home)).map(restored),
        };
        done.map_err(|source| UndoError { action: self.to_string(), by_hand: self.by_hand(), source })
    }

    /// The shell commands that do the same.
    pub fn by_hand(&self) -> String {
        match self {
            Self::WriteFile { path, value, .. } => format!("echo '{value}' > {}", path.display()),
            Self::RemoveZram { number, .. } => format!(
                "swapoff /dev/zram{number}; echo 1 > /sys/block/zram{number}/reset; \
                 echo {number} > /sys/class/zram-control/hot_remove"
            ),
            Self::RemoveCgroup { path, .. } => format!("rmdir {}", path.display()),
        }
    }
}

impl fmt::Display for UndoAction {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WriteFile { path, value, .. } => write!(out, "write '{value}' back to {}", path.display()),
            Self::RemoveZram { number, .. } => write!(out, "remove zram{number}"),
            Self::RemoveCgroup { path, .. } => write!(out, "remove cgroup {}", path.display()),
        }
    }
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

/// Writes `old` back to a switch to which a change wrote `set`.
fn restore(path: &Path, old: &str, set: &str) -> io::Result<Undone> {
    let now = match read_switch(path) {
        Ok(now) => now,
        Err(error) => return ignore_absent(Err(error)).map(|()| Undone::Restored),
    };
    if now == old {
        return Ok(Undone::Restored);
    }
    if now != set && !is_part_of(&now, old, set) {
        return Ok(Undone::LeftAlone(now));
    }
    ignore_absent(write_switch(path, old)).map(|()| Undone::Restored)
}

/// Whether `now` is a part of the change from `old` to `set`.
fn is_part_of(now: &str, old: &str, set: &str) -> bool {
    let number = |text: &str| text.parse::<u64>().ok();
    match (number(now), number(old), number(set)) {
        (Some(now), Some(old), Some(set)) => (old.min(set)..=old.max(set)).contains(&now),
        _ => false,
    }
}

fn remove_cgroup(path: &Path, home: &Path) -> io::Result<()> {
    let members = fs::read_to_string(path.join("cgroup.procs"))?;
    for pid in members.lines() {
        // The process may have ended; any other failure makes rmdir fail.
        let _ = write_switch(&home.join("cgroup.procs"), pid);
    }
    retry(CGROUP_TRIES, CGROUP_PAUSE, is_busy, || fs::remove_dir(path))
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
    fn an_action_is_read_as_it_was_written() {
        let path = PathBuf::from("/sys/a \"quoted\"\nname");
        let actions = [
            UndoAction::WriteFile { path, value: "ma\ndvise\\".to_owned(), set: "x".to_owned() },
            UndoAction::RemoveZram { number: 3, diskseq: Some(11) },
            UndoAction::RemoveCgroup { path: "/sys/fs/cgroup/x".into(), home: "/sys/fs/cgroup".into() },
        ];
        for action in actions {
            let line = serde_json::to_string(&action).unwrap();
            assert!(!line.contains('\n'), "one line an action: {line}");
            assert_eq!(serde_json::from_str::<UndoAction>(&line).unwrap(), action);
        }
        assert!(serde_json::from_str::<UndoAction>(r#"{"undo":"format-disk"}"#).is_err());
    }

    fn write(path: &Path, value: &str, set: &str) -> UndoAction {
        UndoAction::WriteFile { path: path.to_owned(), value: value.to_owned(), set: set.to_owned() }
    }

    #[test]
    fn the_old_value_is_written_back() {
        let (_dir, path) = file_saying("never-and-longer");
        assert_eq!(write(&path, "madvise", "never-and-longer").perform().unwrap(), Undone::Restored);
        assert_eq!(fs::read_to_string(path).unwrap(), "madvise");
    }

    #[test]
    fn a_value_set_by_another_process_stays() {
        let (_dir, path) = file_saying("always [inherit] never");
        let done = write(&path, "never", "always").perform().unwrap();
        assert_eq!(done, Undone::LeftAlone("inherit".to_owned()));
        assert_eq!(fs::read_to_string(path).unwrap(), "always [inherit] never");
    }

    #[test]
    fn a_number_that_was_granted_in_part_is_restored() {
        for (now, ours) in
            [("64", true), ("17", true), ("16", true), ("65", false), ("3", false), ("x", false)]
        {
            let (_dir, path) = file_saying(now);
            let done = write(&path, "16", "64").perform().unwrap();
            assert_eq!(done == Undone::Restored, ours, "{now}");
            let says = fs::read_to_string(path).unwrap();
            assert_eq!(says, if ours { "16" } else { now });
        }
    }

    proptest::proptest! {
        /// Any sequence of values: undone backwards, the switch has its first value.
        #[test]
        fn undoing_backwards_restores_any_state(
            first in "[a-z]{1,8}|[0-9]{1,6}",
            values in proptest::collection::vec("[a-z]{1,8}|[0-9]{1,6}", 1..6),
        ) {
            let (_dir, path) = file_saying(&first);
            let mut actions = Vec::new();
            for value in &values {
                let old = read_switch(&path).unwrap();
                actions.push(write(&path, &old, value));
                write_switch(&path, value).unwrap();
            }
            for action in actions.iter().rev() {
                proptest::prop_assert_eq!(action.perform().unwrap(), Undone::Restored);
            }
            proptest::prop_assert_eq!(read_switch(&path).unwrap(), first);
        }
    }

    #[test]
    fn a_missing_object_needs_no_undoing() {
        let (dir, path) = file_saying("");
        fs::remove_file(&path).unwrap();
        write(&path, "x", "y").perform().unwrap();
        assert!(!path.exists(), "an undo never creates a file");
        UndoAction::RemoveCgroup { path: dir.path().join("gone"), home: dir.path().into() }
            .perform()
            .unwrap();
        UndoAction::RemoveZram { number: 4_000_000_000, diskseq: None }.perform().unwrap();
    }

    #[test]
    fn a_failed_undo_says_how_to_do_it_by_hand() {
        let dir = tempfile::tempdir().unwrap();
        let error = write(dir.path(), "madvise", "never").perform().unwrap_err().to_string();
        assert!(error.contains("echo 'madvise' > "), "{error}");
    }
}
