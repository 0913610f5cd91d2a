//! Changes to the host, for the commands that make some.

use host::{HostChanges, undo_leftovers};
use program::output;

/// No changes yet, and none left of a zapscope that was killed.
pub fn begin() -> HostChanges {
    for left in undo_leftovers() {
        output::message(&left.text);
    }
    HostChanges::new(|change| output::message(change))
}

/// Undoes them, and says what could not be undone. Whether all was.
pub fn end(changes: &HostChanges) -> bool {
    let left = changes.undo_all();
    left.iter().for_each(output::message);
    left.is_empty()
}
