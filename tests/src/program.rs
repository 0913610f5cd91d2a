//! The program as a child process: this test binary, started again with a first argument that makes it be
//! zapscope.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Resource, Signal, kill_process, test_kill_process_group};

use crate::stand_in;

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
pub fn zapscope<S: AsRef<OsStr>>(directory: &Path, arguments: &[S]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a running program has a file"));
    command.arg(BE_ZAPSCOPE).args(arguments).current_dir(directory).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The same command, whose process leaves no core file if a signal ends it.
pub fn without_core(mut command: Command) -> Command {
    stand_in::limited(&mut command, Resource::Core, 0);
    command
}

/// Runs it to its end.
pub fn output<S: AsRef<OsStr>>(directory: &Path, arguments: &[S]) -> Output {
    let words: Vec<_> = arguments.iter().map(AsRef::as_ref).collect();
    let _waiting = harness::waiting(format!("the end of zapscope {words:?}"));
    zapscope(directory, arguments).output().expect("the test binary starts again")
}

/// How long a program may take that ends by itself. Far more than it needs.
const PATIENCE: Duration = Duration::from_secs(120);
/// And one that boots a Linux whose every kernel instruction is emulated.
pub const MINUTES: Duration = Duration::from_secs(900);

/// A command line of zapscope as [`zapscope`] makes it, whose processes are a group of their own.
pub fn grouped<S: AsRef<OsStr>>(directory: &Path, arguments: &[S]) -> Command {
    let mut command = zapscope(directory, arguments);
    command.process_group(0);
    command
}

/// Waits for the end of a group's first process, and sees that no other is left of it. Closes its input.
pub fn end_of_group(child: Child) -> Output {
    end_of_group_within(child, PATIENCE)
}

/// The same, for one that takes longer.
pub fn end_of_group_within(child: Child, patience: Duration) -> Output {
    let pid = Pid::from_child(&child);
    let (send, receive) = channel();
    let waiting = std::thread::spawn(move || send.send(child.wait_with_output()));
    let _waiting = harness::waiting(format!("the end of process {pid:?} and of what it wrote"));
    let ended = receive.recv_timeout(patience);
    if ended.is_err() {
        // What it said comes with its end.
        let _ = kill_process(pid, Signal::KILL);
    }
    let output = ended.or_else(|_| receive.recv()).expect("the thread sends before it ends");
    let output = output.expect("a child that was started has an end");
    waiting.join().expect("it only waits").expect("the receiver is here");
    assert!(output.status.code().is_some(), "it did not end by itself; it said: {}", stderr(&output));
    assert_eq!(test_kill_process_group(pid), Err(Errno::SRCH), "a process is left of it");
    output
}

/// Standard error as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
