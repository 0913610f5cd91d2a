//! What a destructor could not undo, or not wait for. A destructor returns nothing, and a library prints nothing: whoever
//! uses it says where such news goes.

use std::sync::OnceLock;

static HEAR: OnceLock<fn(&str)> = OnceLock::new();

/// Has `hear` told of each change to the host that a destructor of this crate could not undo, and of each thread that it
/// could not wait for. The first one stays; it must not panic. Without one such news is lost: callers who want to know
/// call `leave`, `remove` or `stop`.
pub fn hear_what_is_left_behind(hear: fn(&str)) {
    let _ = HEAR.set(hear);
}

/// Tells it.
pub(crate) fn tell(what: &str) {
    if let Some(hear) = HEAR.get() {
        hear(what);
    }
}
