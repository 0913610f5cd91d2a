//! The command line's words.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::scenario::Size;

/// What does it cost a guest when the host takes its memory away?
#[derive(Debug, Parser)]
#[command(name = "zapscope", version, max_term_width = 100)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What zapscope does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a scenario, print its table, write a run directory.
    Run(RunArguments),
    /// Say what this host can and cannot measure, and the command that would change it.
    Doctor(DoctorArguments),
}

/// `zapscope run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// A built-in scenario's name, or a TOML file.
    #[arg(default_value = "swapout")]
    pub scenario: String,
    /// Make a zram swap device of this size for the run, and take it away again.
    #[arg(long, value_name = "SIZE")]
    pub zram: Option<Size>,
    /// Who accesses the memory.
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto)]
    pub backend: BackendChoice,
    /// Print the run record on standard output, everything else on standard error.
    #[arg(long)]
    pub json: bool,
    /// Where the run directory goes.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// `zapscope doctor`.
#[derive(Debug, Args)]
pub struct DoctorArguments {
    /// Print the findings as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Who accesses the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// A guest under KVM where /dev/kvm opens, else the software MMU.
    Auto,
    /// A guest under KVM.
    Kvm,
    /// Worker threads on the software MMU.
    Soft,
}
