//! Reports of destructors: of changes that they could not undo, and threads that did not end. A destructor returns no
//! error and a library prints nothing, so the program installs a function that receives the reports.

use std::sync::OnceLock;

static HEAR: OnceLock<fn(&str)> = OnceLock::new();

/// Installs the function that receives the report of each change to the host that a destructor of this crate could not
/// undo, and of each thread that did not end. The first one stays; it must not panic. Without one the reports are lost.
pub fn hear_what_is_left_behind(hear: fn(&str)) {
    let _ = HEAR.set(hear);
}

/// Reports it.
pub(crate) fn tell(what: &str) {
    if let Some(hear) = HEAR.get() {
        hear(what);
    }
}
