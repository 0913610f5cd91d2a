//! The end of a run.

use std::fmt;

use guest_mem::with_causes;

use super::errors::TrialError;
use crate::testbed::LinuxError;
use machine::VmError;
use program::exit::{Class, Classified};
use program::input::InputError;

/// An error that ends a run before its last row.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum RunError {
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("a Linux guest needs a kernel: name one with `--kernel FILE`, or `kernel` in the scenario")]
    NoLinuxKernel,
    #[error("there is no Linux guest for this scenario")]
    Linux(#[source] LinuxError),
    #[error("no machine can be made for this scenario")]
    Machine(#[source] VmError),
    #[error("the guest failed in case {case}, {row}")]
    Guest { case: String, row: String, source: Box<TrialError> },
}

impl Classified for RunError {
    fn class(&self) -> Class {
        match self {
            Self::Input(error) => error.class(),
            Self::NoLinuxKernel => Class::Mistake,
            Self::Linux(error) => error.class(),
            Self::Machine(error) => error.class(),
            Self::Guest { source, .. } => source.class(),
        }
    }
}

/// The end of a run.
#[derive(Debug)]
pub enum Ended {
    /// Every row was made.
    Complete,
    /// The user stopped it.
    Cancelled,
    /// By an error that every other row would have met, too.
    Failed(RunError),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Complete => f.write_str("complete"),
            Self::Cancelled => f.write_str("cancelled"),
            Self::Failed(error) => write!(f, "failed: {}", with_causes(error)),
        }
    }
}
