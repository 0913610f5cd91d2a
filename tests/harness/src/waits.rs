//! Waits of tests, each with a name that stands in the report if it does not end.

use std::sync::mpsc::Receiver;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::threads::own_id;

/// One wait.
struct Wait {
    number: u64,
    thread: i32,
    what: String,
    since: Instant,
}

/// All waits of this process, oldest first, and how many there were ever.
static WAITS: Mutex<(Vec<Wait>, u64)> = Mutex::new((Vec::new(), 0));

fn lock() -> MutexGuard<'static, (Vec<Wait>, u64)> {
    WAITS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says, while it lives, what its thread waits for.
#[must_use = "the wait ends when this is dropped"]
pub struct Waiting(u64);

/// Registers a wait of this thread for `what`.
pub fn waiting(what: impl Into<String>) -> Waiting {
    let (waits, count) = &mut *lock();
    *count += 1;
    waits.push(Wait { number: *count, thread: own_id(), what: what.into(), since: Instant::now() });
    Waiting(*count)
}

impl Drop for Waiting {
    fn drop(&mut self) {
        lock().0.retain(|wait| wait.number != self.0);
    }
}

/// Joins a thread that is known as `who`.
pub fn join<T>(thread: JoinHandle<T>, who: &str) -> T {
    let _waiting = waiting(format!("the end of {who}"));
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Receives the next message of `who`.
pub fn receive<T>(from: &Receiver<T>, who: &str) -> T {
    let _waiting = waiting(format!("a message of {who}"));
    from.recv().unwrap_or_else(|_| panic!("{who} is gone without a message"))
}

/// Waits until something is so, and looks every few milliseconds.
#[track_caller]
pub fn until(what: &str, mut met: impl FnMut() -> bool) {
    const PATIENCE: Duration = Duration::from_secs(120);
    let _waiting = waiting(what);
    let deadline = Instant::now() + PATIENCE;
    while !met() {
        assert!(Instant::now() < deadline, "waited for {PATIENCE:.0?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A line for each wait of this process.
pub(crate) fn all() -> String {
    let line = |wait: &Wait| {
        let seconds = wait.since.elapsed().as_secs();
        format!("  thread {} waits for {}, for {seconds} s\n", wait.thread, wait.what)
    };
    lock().0.iter().map(line).collect()
}
