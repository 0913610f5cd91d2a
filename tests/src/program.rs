//! The program as a child process: this test binary, started again with a first argument that makes it be
//! zapscope.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The first argument that makes a test binary be zapscope.
pub const BE_ZAPSCOPE: &str = "__be-zapscope";

/// The arguments without it, if it is there.
pub fn asked_to_be_zapscope() -> Option<Vec<OsString>> {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let asked = arguments.get(1).is_some_and(|first| first == BE_ZAPSCOPE);
    asked.then(|| {
        arguments.remove(1);
        arguments
    })
}

/// A command line of zapscope, run in `directory`.
///
/// # Panics
/// This test binary has lost its own file.
pub fn zapscope<S: AsRef<OsStr>>(directory: &Path, arguments: &[S]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a running program has a file"));
    command.arg(BE_ZAPSCOPE).args(arguments).current_dir(directory).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it to its end.
///
/// # Panics
/// It cannot be started.
pub fn output<S: AsRef<OsStr>>(directory: &Path, arguments: &[S]) -> Output {
    zapscope(directory, arguments).output().expect("the test binary starts again")
}

/// Standard error as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
