//! The terminal that the guest's console is shown on: raw mode, and the keys that speak to the VMM.

mod escape;

use program::exit::{Class, Classified};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::termios::{OptionalActions, OutputModes, Termios, isatty, tcgetattr, tcsetattr};

pub use escape::{Escape, Escapes, HELP};

/// A terminal that could not be prepared.
#[derive(Debug, thiserror::Error)]
#[error("cannot put the terminal into raw mode")]
pub struct TerminalError(#[source] io::Error);

impl Classified for TerminalError {
    fn class(&self) -> Class {
        Class::of_refused_io(&self.0)
    }
}

/// Raw mode, for as long as the value lives: every key goes to the guest, Ctrl-C too.
///
/// It is given back on drop, so also when the thread that holds it panics; `std::process::exit` runs no drop.
#[derive(Debug)]
#[must_use = "the terminal's old mode is restored as soon as this is dropped"]
pub struct RawMode {
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    /// Enters raw mode; `None` if `fd` is no terminal.
    pub fn enter(fd: impl AsFd) -> Result<Option<Self>, TerminalError> {
        if !isatty(&fd) {
            return Ok(None);
        }
        let terminal = fd.as_fd().try_clone_to_owned().map_err(TerminalError)?;
        let before = tcgetattr(&terminal).map_err(|errno| TerminalError(errno.into()))?;
        let mut raw = before.clone();
        raw.make_raw();
        // Output is processed as before: the VMM's own lines end with a mere newline.
        raw.output_modes |= before.output_modes & OutputModes::OPOST;
        tcsetattr(&terminal, OptionalActions::Now, &raw).map_err(|errno| TerminalError(errno.into()))?;
        Ok(Some(Self { terminal, before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone has no mode to be restored.
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::termios::LocalModes;
    use std::fs::File;
    use std::os::fd::FromRawFd;

    /// Both ends of a pseudo-terminal: what a terminal emulator holds, and what a program sees.
    fn pseudo_terminal() -> [OwnedFd; 2] {
        let (mut master, mut slave) = (-1, -1);
        let none = std::ptr::null_mut();
        // SAFETY: the two descriptors are written to live integers; name, modes and size are optional.
        let made = unsafe { libc::openpty(&raw mut master, &raw mut slave, none, none.cast(), none.cast()) };
        assert_eq!(made, 0, "{}", io::Error::last_os_error());
        [master, slave].map(|fd| {
            // SAFETY: the call made the descriptor, and only this value owns it.
            unsafe { OwnedFd::from_raw_fd(fd) }
        })
    }

    fn is_raw(terminal: &OwnedFd) -> bool {
        let modes = tcgetattr(terminal).unwrap();
        assert!(modes.output_modes.contains(OutputModes::OPOST));
        !modes.local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    #[test]
    fn raw_mode_ends_with_its_guard() {
        let [_master, terminal] = pseudo_terminal();
        assert!(!is_raw(&terminal));
        let guard = RawMode::enter(&terminal).unwrap().expect("this is a terminal");
        assert!(is_raw(&terminal));
        drop(guard);
        assert!(!is_raw(&terminal));
    }

    #[test]
    fn raw_mode_ends_with_a_panic() {
        let [_master, terminal] = pseudo_terminal();
        let ended = std::panic::catch_unwind(|| {
            let _guard = RawMode::enter(&terminal).unwrap();
            assert!(is_raw(&terminal));
            std::panic::resume_unwind(Box::new(()));
        });
        assert!(ended.is_err());
        assert!(!is_raw(&terminal));
    }

    #[test]
    fn what_is_no_terminal_is_left_alone() {
        assert!(RawMode::enter(File::open("/dev/null").unwrap()).unwrap().is_none());
    }
}
