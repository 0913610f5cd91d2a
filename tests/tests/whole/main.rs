//! Tests of the whole: real KVM, real swap, real processes.
//!
//! Each test names what it needs of the host: see `harness`. Tests share the host's swap and its two clocks, so they run
//! one after another unless told otherwise.
//!
//! `ZAPSCOPE_LONG=1` runs the long tests at full length.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test says what it could not do")]

mod agreement;
mod announcements;
mod another_observer;
mod attach;
mod bad_guests;
mod bad_input;
mod book;
mod boot_guest;
mod boot_input;
mod boot_pvm;
mod built_in;
mod counts;
mod doctor;
mod escapes;
mod expectations;
mod figures;
mod guest;
mod host_as_it_was;
mod hugetlb;
mod interrupted;
mod kernel_account;
mod linux;
mod no_kvm;
mod nothing_lost;
mod own_swap;
mod refused_calls;
mod replay;
mod restore;
mod restore_input;
mod run_directory;
mod shared_swap;
mod streams;
mod timeline;
mod unprivileged;
mod way_out;

use std::process::ExitCode;

use tests::program;

/// Declares the tests of a module, with what each needs.
#[macro_export]
macro_rules! tests {
    ($($tests:tt)*) => { harness::tests! { tests::host::Need; $($tests)* } };
}

fn main() -> ExitCode {
    if let Some(code) = host::guardian_main::run_if_asked(std::env::args_os()) {
        return code;
    }
    if let Some(arguments) = program::asked_to_be_zapscope() {
        return vmm::cli::main_with(arguments);
    }
    // What a shell starts in the background inherits these ignored, and so would all that the tests start, and are to end.
    for signal in [libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: the default action runs no code of ours, and no other thread has begun.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let all = [
        doctor::tests(),
        book::tests(),
        guest::tests(),
        bad_guests::tests(),
        agreement::tests(),
        no_kvm::tests(),
        nothing_lost::tests(),
        own_swap::tests(),
        attach::tests(),
        restore::tests(),
        restore_input::tests(),
        hugetlb::tests(),
        unprivileged::tests(),
        counts::tests(),
        built_in::tests(),
        another_observer::tests(),
        announcements::tests(),
        kernel_account::tests(),
        refused_calls::tests(),
        replay::tests(),
        timeline::tests(),
        expectations::tests(),
        figures::tests(),
        bad_input::tests(),
        boot_input::tests(),
        boot_guest::tests(),
        boot_pvm::tests(),
        run_directory::tests(),
        way_out::tests(),
        host_as_it_was::tests(),
        streams::tests(),
        shared_swap::tests(),
        escapes::tests(),
        interrupted::tests(),
        linux::tests(),
    ];
    harness::main("the whole", all.into_iter().flatten().collect())
}
