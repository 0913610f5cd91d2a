//! Signals that end a command.

use std::io;
use std::time::Duration;

use host::signals::{self, Cancel, SignalError};
use program::output;

/// A token that a stop signal cancels. After the first signal the program does not wait for a reader that does not read.
pub fn cancel_on_signal() -> Result<Cancel, SignalError> {
    signals::cancel_on_signal(|text| {
        output::hurry();
        output::message(text);
    })
}

/// Performs `stop` in a thread of its own once the token is cancelled.
pub fn when_cancelled(cancel: &Cancel, stop: impl FnOnce() + Send + 'static) -> io::Result<()> {
    const DAY: Duration = Duration::from_secs(86_400);
    let cancel = cancel.clone();
    std::thread::Builder::new().name("stop".to_owned()).spawn(move || {
        while cancel.sleep(DAY).is_ok() {}
        stop();
    })?;
    Ok(())
}
