//! How a run ends.

use std::fmt;

use guest_mem::with_causes;

use super::errors::TrialError;
use crate::testbed::LinuxError;
use machine::VmError;
use program::exit::{Class, Classified};
use program::input::InputError;

/// Why a run ended before its last row.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The guest kernel that the scenario names cannot be read.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A Linux guest needs a kernel.
    #[error("a Linux guest needs a kernel: name one with `--kernel FILE`, or `kernel` in the scenario")]
    NoLinuxKernel,
    /// The Linux guest did not come up.
    #[error("there is no Linux guest for this scenario")]
    Linux(#[source] LinuxError),
    /// A machine could not be made, for a reason that the next row would meet too.
    #[error("no machine can be made for this scenario")]
    Machine(#[source] VmError),
    /// The guest failed.
    #[error("the guest failed in case {case}, {row}")]
    Guest {
        /// Which case.
        case: String,
        /// Which row.
        row: String,
        /// What went wrong there.
        source: Box<TrialError>,
    },
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

/// How a run ended.
#[derive(Debug)]
pub enum Ended {
    /// Every row was made.
    Complete,
    /// The user stopped it.
    Cancelled,
    /// By what would have befallen every other row as well.
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
