//! Tests of the whole: real KVM, real swap, real processes.
//!
//! Each test names what it needs of the host. One whose need is not met does not run: it is listed as ignored,
//! and at the end said aloud with the reason. Tests share the host's swap and its two clocks, so they run one
//! after another unless told otherwise.
//!
//! `ZAPSCOPE_LONG=1` runs the long tests at full length.
#![allow(clippy::unwrap_used, reason = "tests")]

mod agreement;
mod another_observer;
mod attach;
mod bad_guests;
mod bad_input;
mod boot_guest;
mod boot_input;
mod boot_pvm;
mod counts;
mod doctor;
mod expectations;
mod guest;
mod kernel_account;
mod linux;
mod nothing_lost;
mod own_swap;
mod replay;
mod restore;
mod restore_input;
mod timeline;
mod unprivileged;
mod way_out;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use tests::host::Need;
use tests::program;

/// A test: its name, what it needs, and itself.
pub type Test = (&'static str, &'static [Need], fn());

/// Names the tests of a module, with what each needs.
#[macro_export]
macro_rules! tests {
    ($($name:ident: [$($need:ident),*]),+ $(,)?) => {
        /// The tests of this module.
        pub const TESTS: &[$crate::Test] = &[$((
            concat!(module_path!(), "::", stringify!($name)),
            &[$(tests::host::Need::$need),*],
            $name,
        )),+];
    };
}

fn main() -> ExitCode {
    if let Some(code) = vmm::host::guardian_main::run_if_asked(std::env::args_os()) {
        return code;
    }
    if let Some(arguments) = program::asked_to_be_zapscope() {
        return vmm::cli::main_with(arguments);
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let all = [
        doctor::TESTS,
        guest::TESTS,
        bad_guests::TESTS,
        agreement::TESTS,
        nothing_lost::TESTS,
        own_swap::TESTS,
        attach::TESTS,
        restore::TESTS,
        restore_input::TESTS,
        unprivileged::TESTS,
        counts::TESTS,
        another_observer::TESTS,
        kernel_account::TESTS,
        replay::TESTS,
        timeline::TESTS,
        expectations::TESTS,
        bad_input::TESTS,
        boot_input::TESTS,
        boot_guest::TESTS,
        boot_pvm::TESTS,
        way_out::TESTS,
        linux::TESTS,
    ];
    let (mut trials, mut missing) = (Vec::new(), Vec::new());
    for &(path, needs, test) in all.into_iter().flatten() {
        let name = path.trim_start_matches("whole::");
        let why = needs.iter().find_map(|need: &Need| need.missing());
        if let Some(why) = why {
            missing.push((name, why));
        }
        let run = move || {
            test();
            Ok(())
        };
        trials.push(Trial::test(name, run).with_ignored_flag(why.is_some()));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        println!(
            "tests of the whole: {} ran, {} could not",
            conclusion.num_passed + conclusion.num_failed,
            missing.len()
        );
        for (name, why) in &missing {
            println!("COULD NOT RUN {name}: {why}");
        }
    }
    conclusion.exit_code()
}
