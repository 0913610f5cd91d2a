//! A thread whose end is waited for, but not for ever.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::{END, Overdue};

/// A running thread. One that is not waited for, or not long enough, runs on: what it can reach is its own or shared, and
/// stays.
#[derive(Debug)]
#[must_use = "somebody has to wait for its end"]
pub struct Thread<T> {
    name: String,
    /// The thread's number, once it runs.
    id: Arc<AtomicI32>,
    /// Closed when the thread has done its work, or has panicked.
    ended: Mutex<Receiver<Infallible>>,
    handle: JoinHandle<T>,
}

impl<T: Send + 'static> Thread<T> {
    /// Starts it.
    ///
    /// # Errors
    /// The system has no room for another thread.
    pub fn start(name: impl Into<String>, work: impl FnOnce() -> T + Send + 'static) -> io::Result<Self> {
        let (name, id) = (name.into(), Arc::new(AtomicI32::new(0)));
        let (running, ended) = channel();
        let own_id = id.clone();
        let handle = Builder::new().name(name.clone()).spawn(move || {
            // Dropped last, on every way out.
            let _running = running;
            own_id.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
            work()
        })?;
        Ok(Self { name, id, ended: Mutex::new(ended), handle })
    }

    /// Waits for its end, of which it was told: what it returned, or what it panicked with.
    ///
    /// # Errors
    /// It has not ended within that time, and runs on.
    pub fn end(self, within: Duration) -> Result<std::thread::Result<T>, Overdue> {
        let ended = self.ended.into_inner().unwrap_or_else(PoisonError::into_inner);
        match ended.recv_timeout(within) {
            Err(RecvTimeoutError::Timeout) => {
                let what = format!("the end of thread {}", self.name);
                Err(Overdue::from_thread(what, within, self.id.load(Ordering::Relaxed)))
            }
            // Only its last steps are left, which wait for nobody.
            Err(RecvTimeoutError::Disconnected) => Ok(self.handle.join()),
            Ok(never) => match never {},
        }
    }

    /// The same in a destructor: says it if the thread has not ended. One that panicked has said so itself.
    pub fn end_or_tell(self) {
        if let Err(overdue) = self.end(END) {
            overdue.tell();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_gives_what_it_returned_and_what_it_panicked_with() {
        let returns = Thread::start("returns", || 7).unwrap();
        assert_eq!(returns.end(END).unwrap().unwrap(), 7);
        let panics = Thread::start("panics", || std::panic::resume_unwind(Box::new("on purpose"))).unwrap();
        let panic: std::thread::Result<()> = panics.end(END).unwrap();
        assert_eq!(panic.unwrap_err().downcast_ref(), Some(&"on purpose"));
    }

    #[test]
    fn one_that_does_not_end_is_told_of_by_name_and_keeps_what_it_has() {
        let (hold, held) = channel::<()>();
        let shared = Arc::new(());
        let its = shared.clone();
        let hangs = Thread::start("hangs", move || {
            let _ = held.recv();
            drop(its);
        });
        let overdue = hangs.unwrap().end(Duration::from_millis(50)).unwrap_err().to_string();
        assert!(
            overdue.contains(" waited 50 ms for the end of thread hangs, in vain: its thread is "),
            "{overdue}"
        );
        assert_eq!(Arc::strong_count(&shared), 2, "it runs on");
        drop(hold);
    }
}
