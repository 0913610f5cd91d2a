//! The guardian: a child process that undoes the changes of a run that was killed.
//!
//! ```text
//!  run                                      guardian (own session, ignores SIGINT, SIGTERM, SIGHUP, SIGQUIT)
//!   ├─ start, log ────────────────────────►   │  locks the log as well (`change_log`)
//!   │ ◄──────────────────────────── ready ──  │
//!   ├─ plan 1: write 'madvise' back ──────►   │  outstanding: 1        the change is made after this
//!   ├─ add-zram 2 ────────────────────────►   │  makes the device, outstanding: 1, 2
//!   │ ◄─────────────────────── zram 3 ──────  │
//!   ├─ forget 2 (the run undid it) ───────►   │  outstanding: 1
//!   ├─ done ──────────────────────────────►   └─ exits
//!   ╳ killed: the socket closes ──────────►      waits for the run's end, undoes 1, exits
//! ```
//!
//! The guardian knows of every change before it exists: the plan is in the socket before the change is made, and stays
//! readable after the run's end; a zram device, whose number is not known before it exists, is made by the guardian. A run
//! whose guardian ends starts another one and sends it all outstanding changes. If both are killed, as by the end of a PID
//! namespace, the next zapscope undoes by the log ([`super::leftovers`]).

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use guest_mem::remedy::{self, Asked};
use rustix::process::{Pid, PidfdFlags};

use super::change_log::LogError;
use super::guardian_message::{Answer, Request, to_line};
use program::exit::{Class, Classified};

/// The hidden argument that makes the program a guardian; the PID of the run follows it.
pub const GUARDIAN_ARGUMENT: &str = "__guardian";

/// The limit on the wait for an answer. A guardian answers within microseconds, on an emulated host within a second.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);

/// The guardian failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum GuardianError {
    #[error("cannot start the process that would undo changes after a crash, so nothing is changed{}", remedy::after_io(Asked::Thread, .0))]
    Start(#[source] io::Error),
    #[error(
        "the process that would undo changes after a crash is gone, so nothing more is changed; start again"
    )]
    Gone(#[source] io::Error),
    #[error("reading /sys/class/zram-control/hot_add made no zram device: {}", hot_add_remedy(*.errno))]
    NoZram { errno: Option<i32>, source: io::Error },
    #[error(
        "in this PID namespace the end of its first process ends the process that would undo a change, and it cannot be noted for a \
         later zapscope, so nothing is changed: give it a directory of its own by ZAPSCOPE_STATE_DIR, or a writable /run"
    )]
    Mortal(#[source] LogError),
}

/// The remedy if the kernel makes no zram device.
fn hot_add_remedy(errno: Option<i32>) -> &'static str {
    match errno {
        Some(libc::ENOENT) => "the driver is not there: `modprobe zram num_devices=0`",
        Some(libc::EACCES | libc::EPERM) => "it is for root: run as root",
        Some(libc::EBUSY) => "the driver is busy with another device, or about to be unloaded: try again",
        Some(libc::ENOMEM | libc::ENOSPC) => {
            "the kernel has no room for one more: remove unused zram devices"
        }
        _ => "see the kernel's log (`dmesg`)",
    }
}

impl Classified for GuardianError {
    fn class(&self) -> Class {
        match self {
            Self::Start(source) => Class::of_refused_io(source),
            Self::Gone(_) => Class::Fault,
            Self::NoZram { .. } | Self::Mortal(_) => Class::Host,
        }
    }
}

/// Makes the command that starts a guardian: this program with [`GUARDIAN_ARGUMENT`], or a test's own.
pub(crate) type GuardianProgram = fn() -> Command;

/// This program as the guardian of this process.
pub(crate) fn this_program() -> Command {
    // Not by its path: the file may have been replaced.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("zapscope-guardian").arg(GUARDIAN_ARGUMENT).arg(std::process::id().to_string());
    command
}

/// The guardian, as its run sees it.
#[derive(Debug)]
pub(crate) struct Guardian {
    child: Child,
    channel: BufReader<UnixStream>,
}

impl Guardian {
    /// Starts a guardian, and waits until it ignores Ctrl-C and has locked the log.
    pub(crate) fn start(program: GuardianProgram, log: Option<&Path>) -> Result<Self, GuardianError> {
        let (ours, theirs) = UnixStream::pair().map_err(GuardianError::Start)?;
        ours.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(GuardianError::Start)?;
        // The command keeps `theirs` open until it is dropped: it must be dropped before the wait for an answer, or a guardian
        // that fails to start would look like a slow one.
        let child = program()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .map_err(GuardianError::Start)?;
        let mut guardian = Self { child, channel: BufReader::new(ours) };
        guardian.expect_ready()?;
        if let Some(path) = log {
            guardian.tell(&Request::Log { path: path.to_owned() })?;
            guardian.expect_ready()?;
        }
        Ok(guardian)
    }

    fn expect_ready(&mut self) -> Result<(), GuardianError> {
        match self.answer() {
            Ok(Answer::Ready) => Ok(()),
            Ok(other) => Err(GuardianError::Start(io::Error::other(format!("it said {other:?}")))),
            Err(error) => Err(GuardianError::Start(error)),
        }
    }

    /// Whether it has ended.
    pub(crate) fn is_dead(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// A pidfd, readable once it has ended; `None` on kernels before 5.3.
    pub(crate) fn death(&self) -> Option<OwnedFd> {
        rustix::process::pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).ok()
    }

    /// Sends a request. When this returns, the guardian will read it even if this process ends.
    pub(crate) fn tell(&mut self, request: &Request) -> Result<(), GuardianError> {
        let line = to_line(request).map_err(GuardianError::Gone)?;
        self.channel.get_mut().write_all(line.as_bytes()).map_err(GuardianError::Gone)
    }

    /// Has it make a zram device; returns the device's number and serial number.
    pub(crate) fn add_zram(&mut self, id: u64) -> Result<(u32, Option<u64>), GuardianError> {
        self.tell(&Request::AddZram { id })?;
        match self.answer().map_err(GuardianError::Gone)? {
            Answer::Zram { number, diskseq } => Ok((number, diskseq)),
            Answer::Failed { errno, why } => {
                let source = errno.map_or_else(|| io::Error::other(why), io::Error::from_raw_os_error);
                Err(GuardianError::NoZram { errno, source })
            }
            Answer::Ready => Err(GuardianError::Gone(io::Error::other("it answered out of turn"))),
        }
    }

    /// Has it exit: all changes are undone.
    pub(crate) fn dismiss(mut self) {
        if self.tell(&Request::Done).is_ok() {
            let deadline = Instant::now() + EXIT_TIMEOUT;
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next answer, which stays unread.
    #[cfg(test)]
    pub(crate) fn peek(&self) -> Answer {
        let mut bytes = [0u8; 1024];
        let flags = rustix::net::RecvFlags::PEEK;
        let (length, _) = rustix::net::recv(self.channel.get_ref(), &mut bytes, flags).unwrap();
        serde_json::from_slice(&bytes[..length]).unwrap()
    }

    fn answer(&mut self) -> io::Result<Answer> {
        let mut line = String::new();
        if self.channel.read_line(&mut line)? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended without a word"));
        }
        serde_json::from_str(&line).map_err(io::Error::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each error of the kernel, and of the guardian itself, has its own sentence.
    #[test]
    fn each_error_of_hot_add_has_its_own_remedy() {
        const KNOWN: [(&[i32], &str); 4] = [
            (&[libc::ENOENT], "`modprobe zram num_devices=0`"),
            (&[libc::EACCES, libc::EPERM], "run as root"),
            (&[libc::EBUSY], "try again"),
            (&[libc::ENOMEM, libc::ENOSPC], "remove unused zram devices"),
        ];
        let said = |errno: Option<i32>| {
            let source =
                errno.map_or_else(|| io::ErrorKind::InvalidData.into(), io::Error::from_raw_os_error);
            GuardianError::NoZram { errno, source }.to_string()
        };
        for (errnos, words) in KNOWN {
            for &errno in errnos {
                let said = said(Some(errno));
                assert!(said.starts_with("reading /sys/class/zram-control/hot_add made no zram device: "));
                let others = KNOWN.iter().filter(|(_, other)| said.contains(other)).count();
                assert!(said.contains(words) && others == 1, "{errno}: {said}");
            }
        }
        for errno in [Some(libc::EIO), Some(libc::EINVAL), None] {
            let said = said(errno);
            assert!(said.contains("`dmesg`"), "{errno:?}: {said}");
            assert!(KNOWN.iter().all(|(_, words)| !said.contains(words)), "{errno:?}: {said}");
        }
    }
}
