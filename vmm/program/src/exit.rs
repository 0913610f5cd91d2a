//! How a command ends: its exit code, and the class of an error, from which the code follows.
//!
//! ```text
//!   an error ── Classified::class ──> Class ──> Exit ──> the process's exit code
//!   a result ─────────────────────────────────> Exit ─┘
//! ```
//!
//! A command returns `Result<Exit, Failure>`. [`Failure`] is made of any error that is [`Classified`], and of no other:
//! an error without a class does not compile.

mod foreign;

use std::error::Error;
use std::fmt;
use std::io;
use std::process::ExitCode;

use rustix::io::Errno;

/// What a command ended with. The numbers are part of the command line: they are never changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All that was asked for was done.
    Done = 0,
    /// It was done, and something is wrong with what was looked at: an expectation, a page, an account, a row that failed,
    /// a guest that crashed, a watched process that ended.
    Wrong = 1,
    /// The user has to change something: the command line, a scenario, a file that is missing or is not what it should
    /// be, a place for the results that is taken.
    Mistake = 2,
    /// This host cannot, or not with the rights that this user has.
    Host = 3,
    /// The guest of `boot` asked for a reset.
    Reset = 4,
    /// The system or this program failed in the middle of its work.
    Fault = 5,
    /// A signal, or Ctrl-A x, stopped it: as shells have it for SIGINT.
    Interrupted = 130,
}

/// The exit codes in `zapscope --help`.
pub const CODES: &str = "\
Exit codes:
    0  done
    1  something is wrong with what was looked at: an expectation, a page, an account, a row, the guest
    2  something to correct: the command line, a scenario, a file, a place that is taken
    3  this host cannot, or not with these rights
    4  the guest of `boot` asked for a reset
    5  the system or zapscope failed in the middle of its work
  130  interrupted";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Who can do something about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The guest, or what was measured: see [`Exit::Wrong`].
    Wrong,
    /// The user: see [`Exit::Mistake`].
    Mistake,
    /// Whoever administers this host: see [`Exit::Host`].
    Host,
    /// Nobody in advance: see [`Exit::Fault`].
    Fault,
    /// It is no error: a signal asked for the end.
    Interrupted,
}

impl Class {
    /// Of a system call that this host refused while something was set up: what it lacks, forbids or has used up is the
    /// host's; any other answer should not have come.
    pub fn of_refusal(errno: Errno) -> Self {
        match errno {
            Errno::PERM
            | Errno::ACCESS
            | Errno::ROFS
            | Errno::NOSYS
            | Errno::OPNOTSUPP
            | Errno::NODEV
            | Errno::NXIO
            | Errno::NOENT
            | Errno::NOTTY
            | Errno::BUSY
            | Errno::AGAIN
            | Errno::NOMEM
            | Errno::NOSPC
            | Errno::DQUOT
            | Errno::MFILE
            | Errno::NFILE
            | Errno::FBIG => Self::Host,
            _ => Self::Fault,
        }
    }

    /// Of a file that the user named, to be read or to be made: what its path, its kind or its permissions forbid is the
    /// user's to change; any other answer is the system's.
    pub fn of_named_file(error: &io::Error) -> Self {
        match Errno::from_io_error(error) {
            Some(
                Errno::NOENT
                | Errno::ACCESS
                | Errno::PERM
                | Errno::EXIST
                | Errno::ISDIR
                | Errno::NOTDIR
                | Errno::NOTEMPTY
                | Errno::ROFS
                | Errno::NAMETOOLONG
                | Errno::LOOP
                | Errno::NXIO
                | Errno::NODEV
                | Errno::TXTBSY
                | Errno::BUSY
                | Errno::INVAL,
            ) => Self::Mistake,
            // The limits of this process, and memory: as of any other system call.
            Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::FBIG) => Self::Host,
            Some(_) => Self::Fault,
            // The standard library's own: no text, an end too early, a NUL in a path.
            None => Self::Mistake,
        }
    }

    /// Of a system call that was refused while something was set up, by the standard library's error.
    pub fn of_refused_io(error: &io::Error) -> Self {
        Errno::from_io_error(error).map_or(Self::Fault, Self::of_refusal)
    }

    /// The same of an ioctl's error.
    pub fn of_refused_ioctl(error: kvm_ioctls::Error) -> Self {
        Self::of_refusal(Errno::from_raw_os_error(error.errno()))
    }
}

impl From<Class> for Exit {
    fn from(class: Class) -> Self {
        match class {
            Class::Wrong => Self::Wrong,
            Class::Mistake => Self::Mistake,
            Class::Host => Self::Host,
            Class::Fault => Self::Fault,
            Class::Interrupted => Self::Interrupted,
        }
    }
}

/// An error that says who can do something about it.
pub trait Classified: Error {
    /// Who that is.
    fn class(&self) -> Class;
}

/// An error that ends a command.
pub struct Failure(Box<dyn Classified>);

impl Failure {
    /// What the command ends with.
    pub fn exit(&self) -> Exit {
        self.0.class().into()
    }

    /// The error, to be shown with all it comes from.
    pub fn error(&self) -> &(dyn Error + 'static) {
        &*self.0
    }
}

impl<E: Classified + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(Box::new(error))
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

/// What only the kernel's or a library's error is known of, and nobody has said what was attempted.
impl Classified for io::Error {
    fn class(&self) -> Class {
        Class::Fault
    }
}

impl Classified for serde_json::Error {
    fn class(&self) -> Class {
        Class::Fault
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_its_exit_code() {
        let codes = [Class::Wrong, Class::Mistake, Class::Host, Class::Fault, Class::Interrupted]
            .map(|class| Exit::from(class) as u8);
        assert_eq!(codes, [1, 2, 3, 5, 130]);
        assert_eq!((Exit::Done as u8, Exit::Reset as u8), (0, 4));
        for code in [0, 1, 2, 3, 4, 5, 130] {
            assert!(CODES.contains(&format!("{code:>5}  ")), "{code}");
        }
    }

    #[test]
    fn a_file_that_was_named_is_the_users_until_the_system_fails() {
        let class = |errno: Errno| Class::of_named_file(&errno.into());
        for errno in [Errno::NOENT, Errno::ACCESS, Errno::EXIST, Errno::ISDIR, Errno::NOTDIR, Errno::ROFS] {
            assert_eq!(class(errno), Class::Mistake, "{errno}");
        }
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::FBIG] {
            assert_eq!((class(errno), Class::of_refusal(errno)), (Class::Host, Class::Host), "{errno}");
        }
        for errno in [Errno::IO, Errno::NOSPC] {
            assert_eq!(class(errno), Class::Fault, "{errno}");
        }
        assert_eq!(Class::of_named_file(&io::ErrorKind::InvalidData.into()), Class::Mistake);
    }

    #[test]
    fn a_failure_keeps_its_errors_class_and_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("opening the door")]
        struct Door(#[source] io::Error);
        impl Classified for Door {
            fn class(&self) -> Class {
                Class::of_refused_io(&self.0)
            }
        }
        let of = |errno: Errno| Failure::from(Door(errno.into()));
        assert_eq!(of(Errno::ACCESS).exit(), Exit::Host);
        assert_eq!(of(Errno::IO).exit(), Exit::Fault);
        assert!(of(Errno::IO).error().source().is_some());
    }
}
