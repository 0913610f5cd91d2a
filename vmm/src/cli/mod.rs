//! What a user types.

mod args;
mod attach;
mod backend;
mod boot;
mod directory;
mod progress;
mod recorded;
mod replay;
mod restore;
mod run;
mod snapshot;
mod timeline;
mod zram;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use crate::doctor::Report;
use crate::host::guardian_main;
use crate::report::ktap;
use crate::run::chain;
use args::{Arguments, Command, Format};

/// The exit code of a run that did what it was asked and found something wrong, or could not do it.
const FAILED: u8 = 1;
/// The exit code of a command line that makes no sense.
const SENSELESS: u8 = 2;
/// The exit code of a run in which this host could not make every row that was asked for.
const INCOMPLETE: u8 = 3;
/// The exit code of a guest that asked for a reset.
const RESET: u8 = 4;
/// The exit code of a run that was stopped by a signal, as shells have it for SIGINT.
const INTERRUPTED: u8 = 130;

/// The whole program, with the process's own arguments.
pub fn main() -> ExitCode {
    match guardian_main::run_if_asked(std::env::args_os()) {
        Some(code) => code,
        None => main_with(std::env::args_os()),
    }
}

/// The program with these arguments, the first of which is its name.
pub fn main_with(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        // Help and version, too, come this way, with an exit code of 0.
        Err(message) => message.exit(),
    };
    let outcome = match arguments.command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Replay(arguments) => replay::replay(&arguments),
        Command::Timeline(arguments) => timeline::timeline(&arguments),
        Command::Boot(arguments) => boot::boot(&arguments),
        Command::Snapshot(arguments) => snapshot::snapshot(&arguments),
        Command::Attach(arguments) => attach::attach(&arguments),
        Command::Doctor(arguments) => doctor(&arguments),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("zapscope: {}", chain(&*error));
            let senseless = run::is_senseless(&*error)
                || boot::is_senseless(&*error)
                || snapshot::is_senseless(&*error)
                || replay::is_senseless(&*error);
            ExitCode::from(if senseless { SENSELESS } else { FAILED })
        }
    }
}

fn doctor(arguments: &args::DoctorArguments) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let report = Report::of_this_host();
    match (arguments.json, arguments.format) {
        (true, _) => println!("{}", report.to_json()?),
        (false, Format::Ktap) => {
            eprint!("{}", report.to_text());
            print!("{}", ktap::ktap(&ktap::of_doctor(&report)));
        }
        (false, Format::Text) => print!("{}", report.to_text()),
    }
    Ok(ExitCode::SUCCESS)
}
