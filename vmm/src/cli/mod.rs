//! What a user types.

mod args;
mod attach;
mod backend;
mod boot;
mod place;
mod progress;
mod record_file;
mod recorded;
mod replay;
mod restore;
mod run;
mod run_directory;
mod snapshot;
mod timeline;
mod zram;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use crate::doctor::Report;
use crate::exit::{Exit, Failure};
use crate::host::guardian_main;
use crate::report::ktap;
use crate::run::chain;
use args::{Arguments, Command, Format};

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
        Ok(exit) => exit.into(),
        Err(failure) => {
            eprintln!("zapscope: {}", chain(failure.error()));
            failure.exit().into()
        }
    }
}

fn doctor(arguments: &args::DoctorArguments) -> Result<Exit, Failure> {
    let report = Report::of_this_host();
    match (arguments.json, arguments.format) {
        (true, _) => println!("{}", report.to_json()?),
        (false, Format::Ktap) => {
            eprint!("{}", report.to_text());
            print!("{}", ktap::ktap(&ktap::of_doctor(&report)));
        }
        (false, Format::Text) => print!("{}", report.to_text()),
    }
    Ok(Exit::Done)
}
