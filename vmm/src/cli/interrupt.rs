//! What ends a command before its work is done.

use host::signals::{self, Cancel, SignalError};
use program::output;

/// A token that Ctrl-C and its like cancel. From the first of them on nobody waits for a reader that does not read.
pub fn cancel_on_signal() -> Result<Cancel, SignalError> {
    signals::cancel_on_signal(|text| {
        output::hurry();
        output::message(text);
    })
}
