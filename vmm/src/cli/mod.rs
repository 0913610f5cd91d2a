//! The command line: its commands, and the exit code of each.

mod args;
mod attach;
mod backend;
mod boot;
mod changes;
mod interrupt;
mod place;
mod progress;
mod ranges;
mod record_file;
mod recorded;
mod replay;
mod restore;
mod run;
mod run_directory;
mod snapshot;
mod timeline;
mod tuned;
mod zram;

use std::ffi::OsString;
use std::panic::catch_unwind;
use std::process::ExitCode;

use clap::Parser;

use crate::doctor::Report;
use args::{Arguments, Command, Format};
use guest_mem::waits::Overdue;
use guest_mem::with_causes;
use host::signals::ignore_file_size_signal;
use host::{bus_error, guardian_main};
use program::exit::{Exit, Failure};
use program::output;

/// The program, with the arguments of the process.
pub fn main() -> ExitCode {
    match guardian_main::run_if_asked(std::env::args_os()) {
        Some(code) => code,
        None => main_with(std::env::args_os()),
    }
}

/// The program, with these arguments, of which the first is its name.
pub fn main_with(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let overdue = Overdue::count();
    ignore_file_size_signal();
    output::say_panics();
    // Without the handler SIGBUS ends the process without a message.
    let _ = bus_error::say_why();
    guest_mem::hear_what_is_left_behind(|what| output::message(what));
    // A panic, too, ends by a return, so that waiting output is written.
    let arguments = arguments.into_iter().collect();
    let exit = catch_unwind(|| perform(arguments)).unwrap_or(Exit::Fault);
    let complete = output::finish().is_none();
    ended(exit, complete, Overdue::count() > overdue).into()
}

/// The exit code. After a wait for a thread of this program that was given up, neither a success nor a finding is certain.
fn ended(exit: Exit, complete: bool, overdue: bool) -> Exit {
    match exit {
        Exit::Done if !complete => Exit::Fault,
        Exit::Done | Exit::Wrong | Exit::Host | Exit::Reset if overdue => Exit::Fault,
        exit => exit,
    }
}

fn perform(arguments: Vec<OsString>) -> Exit {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(message) => return refused(&message),
    };
    let outcome = match arguments.command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Replay(arguments) => replay::replay(&arguments),
        Command::Timeline(arguments) => timeline::timeline(&arguments),
        Command::Boot(arguments) => boot::boot(&arguments),
        Command::Snapshot(arguments) => snapshot::snapshot(&arguments),
        Command::Attach(arguments) => attach::attach(&arguments),
        Command::Doctor(arguments) => examine(&arguments),
    };
    match outcome {
        Ok(exit) => exit,
        Err(failure) => {
            output::message(with_causes(failure.error()));
            failure.exit()
        }
    }
}

/// A refused command line. Help and version are errors of clap as well, with an exit code of 0.
fn refused(message: &clap::Error) -> Exit {
    if message.use_stderr() {
        output::beside(message);
        return Exit::Mistake;
    }
    output::result(message);
    Exit::Done
}

fn examine(arguments: &args::DoctorArguments) -> Result<Exit, Failure> {
    let report = Report::of_this_host();
    match (arguments.json, arguments.format) {
        (true, _) => output::json(format_args!("{}\n", report.to_json()?)),
        (false, Format::Ktap) => {
            output::beside(report.to_text());
            output::result(report.to_ktap());
        }
        (false, Format::Text) => output::result(report.to_text()),
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_that_was_given_up_is_a_fault() {
        for exit in [Exit::Done, Exit::Wrong, Exit::Host, Exit::Reset, Exit::Fault] {
            assert_eq!(ended(exit, true, true), Exit::Fault);
            assert_eq!(ended(exit, true, false), exit);
        }
        for exit in [Exit::Mistake, Exit::Interrupted] {
            assert_eq!(ended(exit, true, true), exit);
        }
        assert_eq!(ended(Exit::Done, false, false), Exit::Fault);
    }
}

#[cfg(test)]
mod book;
