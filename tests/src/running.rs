//! A process whose standard error is read while it runs.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Command};

use rustix::process::{Pid, Signal, kill_process};

use crate::place::Ended;

/// A process. Dropped before its end, it is killed.
pub struct Running {
    child: Option<Child>,
    stderr: BufReader<ChildStderr>,
    /// What it has written to standard error.
    pub said: String,
}

impl Running {
    /// Starts a command whose standard error is piped.
    pub fn start(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the command starts");
        let stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        Self { child: Some(child), stderr, said: String::new() }
    }

    /// Its process.
    pub fn child(&mut self) -> &mut Child {
        self.child.as_mut().expect("it is there until its end")
    }

    /// Its process number.
    pub fn id(&self) -> u32 {
        self.child.as_ref().expect("it is there until its end").id()
    }

    /// Reads its standard error until it has this.
    #[track_caller]
    pub fn read_until(&mut self, wanted: &str) {
        let _waiting = harness::waiting(format!("a process to say {wanted:?}"));
        while !self.said.contains(wanted) {
            let read = self.stderr.read_line(&mut self.said).expect("standard error is text");
            assert!(read > 0, "it ended without {wanted:?}: {}", self.said);
        }
    }

    /// Sends it a signal.
    pub fn signal(&mut self, signal: Signal) {
        kill_process(Pid::from_child(self.child()), signal).expect("a child that is not waited for");
    }

    /// Waits for its end.
    pub fn end(mut self) -> Ended {
        let _waiting = harness::waiting("the end of a process");
        let child = self.child.take().expect("it is there until its end");
        let mut said = std::mem::take(&mut self.said);
        let stderr = &mut self.stderr;
        let output = std::thread::scope(|scope| {
            let rest = scope.spawn(move || {
                let mut rest = String::new();
                stderr.read_to_string(&mut rest).expect("standard error is text");
                rest
            });
            let output = child.wait_with_output().expect("a child has an end");
            said += &rest.join().expect("it only reads");
            output
        });
        Ended { status: output.status, out: output.stdout, said }
    }

    /// Closes the reading end of its standard error, and waits for its end.
    pub fn end_unheard(mut self) -> std::process::ExitStatus {
        let mut child = self.child.take().expect("it is there until its end");
        drop(self);
        child.wait().expect("a child has an end")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
