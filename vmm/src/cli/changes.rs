//! Changes to the host, for the commands that make some.

use host::{HostChanges, undo_leftovers};
use program::output;

/// Undoes the changes that a killed zapscope left on this host.
pub fn undo_left() {
    undo_leftovers().iter().for_each(|left| output::message(&left.text));
}

/// The changes of this command, none so far. Those that a killed zapscope left are undone first.
pub fn begin() -> HostChanges {
    undo_left();
    HostChanges::new(|change| output::message(change))
}

/// Undoes the changes, and reports those that cannot be undone; returns whether all are.
pub fn end(changes: &HostChanges) -> bool {
    let left = changes.undo_all();
    left.iter().for_each(output::message);
    left.is_empty()
}
