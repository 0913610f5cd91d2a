//! A child of zapscope with a console: read as it comes, typed to.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::program;

/// How long a guest may say nothing. A kernel on an emulated host boots for a minute, and most of it in silence.
const SILENCE: Duration = Duration::from_secs(300);

/// What was printed so far, and whether that is all.
#[derive(Default)]
struct Printed {
    text: String,
    ended: bool,
}

/// zapscope with its standard input and output in our hands.
pub struct Console {
    child: Child,
    stdin: Option<ChildStdin>,
    printed: Arc<(Mutex<Printed>, Condvar)>,
    /// Up to where `expect` has read.
    read: usize,
    readers: Vec<JoinHandle<()>>,
}

impl Console {
    /// Starts it in a directory of its own.
    pub fn open(arguments: &[&str]) -> Self {
        let mut command = program::zapscope(&std::env::temp_dir(), arguments);
        let mut child = command.stdin(Stdio::piped()).spawn().expect("the test binary starts again");
        let printed = Arc::<(Mutex<Printed>, Condvar)>::default();
        let stdout = child.stdout.take().expect("piped");
        let stderr = child.stderr.take().expect("piped");
        let readers = vec![read(stdout, printed.clone(), true), read(stderr, printed.clone(), false)];
        let stdin = child.stdin.take();
        Self { child, stdin, printed, read: 0, readers }
    }

    fn lock(&self) -> MutexGuard<'_, Printed> {
        self.printed.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `text` was printed after what was waited for before.
    pub fn expect(&mut self, text: &str) {
        let _waiting = harness::waiting(format!("{text:?} on the console"));
        let mut seen = 0;
        let mut since = Instant::now();
        let printed = self.printed.clone();
        let mut guard = self.lock();
        loop {
            if let Some(at) = guard.text[self.read..].find(text) {
                let read = self.read + at + text.len();
                drop(guard);
                self.read = read;
                return;
            }
            if guard.text.len() > seen {
                (seen, since) = (guard.text.len(), Instant::now());
            }
            let left = SILENCE.saturating_sub(since.elapsed());
            assert!(!guard.ended && !left.is_zero(), "no {text:?} in:\n{}", guard.text);
            guard = printed.1.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Types a line.
    pub fn type_line(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("open until the end");
        writeln!(stdin, "{line}").expect("zapscope reads its input");
    }

    /// Waits for its end; all that it printed comes with it.
    pub fn end(mut self) -> (ExitStatus, String) {
        let _waiting = harness::waiting("the end of zapscope on a console");
        let printed = self.printed.clone();
        let mut guard = self.lock();
        while !guard.ended {
            let before = guard.text.len();
            let waited = printed.1.wait_timeout(guard, SILENCE).unwrap_or_else(PoisonError::into_inner);
            guard = waited.0;
            let silent = waited.1.timed_out() && guard.text.len() == before;
            assert!(!silent, "it does not end:\n{}", guard.text);
        }
        drop(guard);
        for reader in self.readers.drain(..) {
            reader.join().expect("a reader does not panic");
        }
        let status = self.child.wait().expect("our child");
        let text = std::mem::take(&mut self.lock().text);
        (status, text)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // Ended already, unless a test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(
    mut from: impl Read + Send + 'static,
    printed: Arc<(Mutex<Printed>, Condvar)>,
    is_last: bool,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        loop {
            let len = from.read(&mut bytes).unwrap_or(0);
            let mut guard = printed.0.lock().unwrap_or_else(PoisonError::into_inner);
            guard.text.push_str(&String::from_utf8_lossy(&bytes[..len]));
            guard.ended |= len == 0 && is_last;
            drop(guard);
            printed.1.notify_all();
            if len == 0 {
                return;
            }
        }
    })
}
