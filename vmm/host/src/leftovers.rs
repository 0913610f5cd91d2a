//! The changes of a run that was killed together with its guardian, undone by the next zapscope.

use std::path::PathBuf;

use super::change_log::{Abandoned, ChangeLog, directories};
use super::guardian_main::undo_with_patience;
use super::guardian_message::Request;
use super::undo::{UndoAction, Undone};
use guest_mem::with_causes;

/// A change that was left, and the result of its undoing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// The sentence for the user.
    pub text: String,
    /// Whether the change is undone.
    pub is_gone: bool,
}

/// Undoes the changes that ended runs and their guardians left. Those that cannot be undone stay in the log.
pub fn undo_leftovers() -> Vec<Leftover> {
    undo_those_in(&directories())
}

pub(crate) fn undo_those_in(directories: &[PathBuf]) -> Vec<Leftover> {
    Abandoned::find(directories).into_iter().flat_map(undo).collect()
}

fn undo(abandoned: Abandoned) -> Vec<Leftover> {
    let Abandoned { mut log, pid, outstanding } = abandoned;
    let of = format!("left by a zapscope that was killed (pid {pid})");
    let mut left: Vec<Leftover> = Vec::new();
    for (id, action) in outstanding.actions.iter().rev() {
        let (is_gone, what) = undo_one(action);
        if is_gone {
            let _ = log.note(&Request::Forget { id: *id });
        }
        left.push(Leftover { text: format!("{of}: {what}"), is_gone });
    }
    for id in outstanding.unreported {
        // It may not have been made, and an unused device may be another program's: it is reported once and not removed.
        let text = format!(
            "{of}: perhaps an unused zram device; `zramctl` shows it, `echo NUMBER > /sys/class/zram-control/hot_remove` \
             removes it"
        );
        let _ = log.note(&Request::Forget { id });
        left.push(Leftover { text, is_gone: false });
    }
    if log.outstanding().is_ok_and(|outstanding| outstanding.is_empty()) {
        ChangeLog::end(log);
    }
    left
}

fn undo_one(action: &UndoAction) -> (bool, String) {
    if let UndoAction::RemoveZram { number, diskseq: None } = action {
        // Without a serial number the device may be another program's of the same number.
        return (
            false,
            format!(
                "zram{number}, unless another process has made that since; by hand: {}",
                action.by_hand()
            ),
        );
    }
    match undo_with_patience(action) {
        Ok(Undone::Restored) => (true, format!("undone now: {action}")),
        Ok(Undone::LeftAlone(now)) => {
            (true, format!("not undone: {action}: somebody has set it to '{now}' since"))
        }
        Err(error) => (false, with_causes(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_that_are_left_are_undone_backwards_and_reported() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("zapscope");
        let switch = place.path().join("switch");
        std::fs::write(&switch, "c").unwrap();
        let mut log = ChangeLog::begin(std::slice::from_ref(&directory), "1-a").unwrap();
        for (id, value, set) in [(1, "a", "b"), (2, "b", "c")] {
            let action = UndoAction::WriteFile { path: switch.clone(), value: value.into(), set: set.into() };
            log.note(&Request::Plan { id, action }).unwrap();
        }
        log.note(&Request::AddZram { id: 3 }).unwrap();
        let directories = [directory.clone()];
        assert_eq!(undo_those_in(&directories), [], "its run is alive");
        drop(log);
        let left = undo_those_in(&directories);
        assert_eq!(std::fs::read_to_string(&switch).unwrap(), "a");
        let gone: Vec<bool> = left.iter().map(|one| one.is_gone).collect();
        assert_eq!(gone, [true, true, false]);
        assert!(left[0].text.contains("undone now: write 'b' back"), "{left:?}");
        assert!(left[2].text.contains("perhaps an unused zram"), "{left:?}");
        assert_eq!(undo_those_in(&directories), [], "reported once");
        assert!(!directory.exists());
    }

    #[test]
    fn a_change_that_cannot_be_undone_stays_in_the_log() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("zapscope");
        let mut log = ChangeLog::begin(std::slice::from_ref(&directory), "1-a").unwrap();
        // A device without a serial number is not removed.
        let action = UndoAction::RemoveZram { number: 4_000_000_000, diskseq: None };
        log.note(&Request::Plan { id: 1, action }).unwrap();
        drop(log);
        for _ in 0..2 {
            let left = undo_those_in(std::slice::from_ref(&directory));
            assert!(left[0].text.contains("by hand: ") && !left[0].is_gone, "{left:?}");
        }
    }
}
