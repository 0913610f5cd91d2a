//! What a user types.

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

use crate::doctor::{self, Report};
use analysis::report::ktap;
use args::{Arguments, Command, Format};
use guest_mem::waits::Overdue;
use guest_mem::with_causes;
use host::signals::ignore_file_size_signal;
use host::{bus_error, guardian_main};
use program::exit::{Exit, Failure};
use program::output;

/// The whole program, with the process's own arguments.
pub fn main() -> ExitCode {
    match guardian_main::run_if_asked(std::env::args_os()) {
        Some(code) => code,
        None => main_with(std::env::args_os()),
    }
}

/// The program with these arguments, the first of which is its name.
pub fn main_with(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let overdue = Overdue::count();
    ignore_file_size_signal();
    output::say_panics();
    // Without it the process ends as it does with it, and says less.
    let _ = bus_error::say_why();
    guest_mem::hear_what_is_left_behind(|what| output::message(what));
    // A panic, too, ends by returning: what was said before it is still to be written.
    let arguments = arguments.into_iter().collect();
    let exit = catch_unwind(|| perform(arguments)).unwrap_or(Exit::Fault);
    let complete = output::finish().is_none();
    ended(exit, complete, Overdue::count() > overdue).into()
}

/// What the process ends with. A wait for a thread or a wake of our own that was given up has been told of, and what was
/// done besides is no longer all that was asked for. Nor is what was found wrong the guest's for sure.
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

/// Help and version, too, come this way, with an exit code of 0.
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
            output::result(ktap::ktap(&doctor::of_doctor(&report)));
        }
        (false, Format::Text) => output::result(report.to_text()),
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_that_was_given_up_is_a_fault_of_the_programs() {
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
