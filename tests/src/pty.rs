//! A terminal of a test's own, which it can close under a program.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rustix::fs::OFlags;

/// A terminal. Dropped, it is closed: the program on it gets SIGHUP.
pub struct Terminal(File);

/// Makes this process the leader of a session, which its standard input, a terminal, controls.
fn lead_session() -> io::Result<()> {
    rustix::process::setsid()?;
    // SAFETY: the call takes a number and no memory.
    match unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Terminal {
    /// Starts `command` on a new terminal, which is all three of its standard files and controls its session.
    pub fn start(mut command: Command) -> io::Result<(Self, Child)> {
        let (master, slave) = Self::pair()?;
        rustix::fs::fcntl_setfl(&master, OFlags::NONBLOCK)?;
        command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(Stdio::from(slave));
        // SAFETY: between fork and exec, the function makes two system calls and touches nothing else.
        unsafe { command.pre_exec(lead_session) };
        Ok((Self(master), command.spawn()?))
    }

    /// Both ends of a new terminal: the one that is typed on, and the one that a program sees.
    pub fn pair() -> io::Result<(File, OwnedFd)> {
        let (mut master, mut slave) = (-1, -1);
        let none = std::ptr::null_mut();
        // SAFETY: two places for descriptors; no name, no settings, no size.
        let made = unsafe { libc::openpty(&raw mut master, &raw mut slave, none, none.cast(), none.cast()) };
        if made != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has just made it, for us alone.
        let master = unsafe { OwnedFd::from_raw_fd(master) };
        // SAFETY: as above.
        let slave = unsafe { OwnedFd::from_raw_fd(slave) };
        rustix::io::fcntl_setfd(&master, rustix::io::FdFlags::CLOEXEC)?;
        rustix::io::fcntl_setfd(&slave, rustix::io::FdFlags::CLOEXEC)?;
        Ok((File::from(master), slave))
    }

    /// Reads what there is, so that no writer has to wait.
    pub fn drain(&mut self) {
        let mut bytes = [0; 4096];
        while self.0.read(&mut bytes).is_ok_and(|read| read > 0) {}
    }
}
