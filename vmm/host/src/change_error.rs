//! The error of a change to the host.

use std::io;
use std::path::PathBuf;

use guest_mem::remedy::{self, Asked};
use rustix::io::Errno;

use super::guardian::GuardianError;
use program::exit::{Class, Classified};

/// A change was not made.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum ChangeError {
    #[error("cannot read {path} and could not restore it later, so it is not changed")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write '{value}' to {path}{}", write_remedy(source))]
    Write { path: PathBuf, value: String, source: io::Error },
    #[error("{path} is changed by another zapscope (pid {pid}) at the moment: run one after the other")]
    Taken { path: PathBuf, pid: u32 },
    #[error("cannot make cgroup {path}{}", remedy::after_io(Asked::Cgroup, source))]
    Cgroup { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Guardian(#[from] GuardianError),
}

/// The remedy for a switch that refuses a value.
fn write_remedy(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::ACCESS | Errno::PERM) => ": it is for root",
        Some(Errno::ROFS) => ": it is mounted read-only here; run outside the container",
        Some(Errno::INVAL) => ": this kernel does not know the value",
        _ => "",
    }
}

impl Classified for ChangeError {
    fn class(&self) -> Class {
        match self {
            Self::Read { source, .. } | Self::Write { source, .. } | Self::Cgroup { source, .. } => {
                Class::of_refused_io(source)
            }
            Self::Taken { .. } => Class::Host,
            Self::Guardian(error) => error.class(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_of_a_switch_has_its_own_remedy() {
        let said = |errno: Errno| {
            let (path, value) = (PathBuf::from("/sys/x"), "1".to_owned());
            ChangeError::Write { path, value, source: errno.into() }.to_string()
        };
        for (errno, words) in [
            (Errno::ACCESS, "for root"),
            (Errno::PERM, "for root"),
            (Errno::ROFS, "outside the container"),
            (Errno::INVAL, "does not know the value"),
        ] {
            assert!(said(errno).contains(words), "{errno}: {}", said(errno));
        }
        assert_eq!(said(Errno::IO), "cannot write '1' to /sys/x", "no remedy is known");
    }
}
