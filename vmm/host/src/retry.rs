//! Attempts that are repeated while the kernel is not ready.

use std::io;
use std::time::Duration;

/// Calls `attempt` up to `tries` times with a pause after each failure, as long as `is_transient` holds for the error.
/// Returns the last result.
pub(crate) fn retry<T, E>(
    tries: u32,
    pause: Duration,
    is_transient: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    for _ in 1..tries {
        match attempt() {
            Err(error) if is_transient(&error) => std::thread::sleep(pause),
            done => return done,
        }
    }
    attempt()
}

/// Whether the object was busy.
pub(crate) fn is_busy(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ResourceBusy
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    fn busy(attempt: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        retry(40, Duration::from_millis(1), is_busy, attempt)
    }

    #[test]
    fn only_a_busy_device_is_tried_again() {
        let mut tries = 0;
        let done = busy(|| {
            tries += 1;
            if tries < 3 { Err(ErrorKind::ResourceBusy.into()) } else { Ok(()) }
        });
        assert!(done.is_ok() && tries == 3);
        let mut tries = 0;
        let refused = busy(|| {
            tries += 1;
            Err(ErrorKind::PermissionDenied.into())
        });
        assert!(refused.is_err() && tries == 1);
    }

    #[test]
    fn the_last_failure_is_returned() {
        let mut tries = 0;
        let attempt = || {
            tries += 1;
            Err::<(), u32>(tries)
        };
        assert_eq!(retry(3, Duration::ZERO, |_| true, attempt), Err(3));
    }
}
