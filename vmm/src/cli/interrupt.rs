//! Signals that end a command.

use host::signals::{self, Cancel, SignalError};
use program::output;

/// A token that a stop signal cancels. After the first signal the program does not wait for a reader that does not read.
pub fn cancel_on_signal() -> Result<Cancel, SignalError> {
    signals::cancel_on_signal(|text| {
        output::hurry();
        output::message(text);
    })
}
