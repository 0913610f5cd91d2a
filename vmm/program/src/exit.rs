//! The exit code of a command, and the class of an error, from which the code follows.
//!
//! ```text
//!   an error ── Classified::class ──> Class ──> Exit ──> the process's exit code
//!   a result ─────────────────────────────────> Exit ─┘
//! ```
//!
//! A command returns `Result<Exit, Failure>`. A [`Failure`] is made of an error that is [`Classified`]: an error without a
//! class does not compile.

mod foreign;

use std::error::Error;
use std::io;
use std::process::ExitCode;

use rustix::io::Errno;

/// The result of a command. The numbers are part of the command line and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Success.
    Done = 0,
    /// The work was done, and its subject is wrong: an expectation, a page, an account, a row that failed, a guest that
    /// crashed, a watched process that ended.
    Wrong = 1,
    /// The user has to correct something: the command line, a scenario, a missing or wrong file, a place for results that is
    /// taken.
    Mistake = 2,
    /// This host cannot do it, or not with this user's rights.
    Host = 3,
    /// The guest of `boot` asked for a reset.
    Reset = 4,
    /// The system or this program failed during the work.
    Fault = 5,
    /// A signal or Ctrl-A x stopped it; the number that shells use for SIGINT.
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

/// The origin of an error, which says who can correct it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The guest, or what was measured: see [`Exit::Wrong`].
    Wrong,
    /// The user: see [`Exit::Mistake`].
    Mistake,
    /// The administrator of this host: see [`Exit::Host`].
    Host,
    /// The system or this program: see [`Exit::Fault`].
    Fault,
    /// No error: a signal asked for the end.
    Interrupted,
}

impl Class {
    /// The class of a system call that failed during a setup: of the host, if it lacks, forbids or has used up something; else
    /// a fault.
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

    /// The class of an error on a file that the user named: a mistake, if its path, type or permissions are wrong; else of the
    /// host or a fault.
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
            // Limits of this process, and memory.
            Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::FBIG) => Self::Host,
            Some(_) => Self::Fault,
            // An error of the standard library: no text, an early end, a NUL in a path.
            None => Self::Mistake,
        }
    }

    /// As [`Class::of_refusal`], of an error of the standard library.
    pub fn of_refused_io(error: &io::Error) -> Self {
        Errno::from_io_error(error).map_or(Self::Fault, Self::of_refusal)
    }

    /// As [`Class::of_refusal`], of an error of an ioctl.
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

/// An error with a class.
pub trait Classified: Error {
    /// The class.
    fn class(&self) -> Class;
}

/// An error that ends a command.
#[derive(Debug)]
pub struct Failure(Box<dyn Classified>);

impl Failure {
    /// The exit code.
    pub fn exit(&self) -> Exit {
        self.0.class().into()
    }

    /// The error, to be shown with its sources.
    pub fn error(&self) -> &(dyn Error + 'static) {
        &*self.0
    }
}

impl<E: Classified + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(Box::new(error))
    }
}

/// An error of the kernel or a library without its context.
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
    fn an_error_on_a_named_file_is_a_mistake_unless_the_system_fails() {
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
