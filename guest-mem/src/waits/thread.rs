//! A thread whose end is waited for with a deadline.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::{END, Overdue};

/// A running thread. A thread that is not waited for, or has not ended at the deadline, runs on: it owns or shares all that
/// it can reach.
#[derive(Debug)]
#[must_use = "its end has to be waited for"]
pub struct Thread<T> {
    name: String,
    /// The thread's number, once it runs.
    id: Arc<AtomicI32>,
    /// Closed when the thread has done its work, or has panicked.
    ended: Mutex<Receiver<Infallible>>,
    handle: JoinHandle<T>,
    /// When it was told to end, if that was before its end is waited for.
    told: Option<Instant>,
}

impl<T: Send + 'static> Thread<T> {
    /// Starts it.
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
        Ok(Self { name, id, ended: Mutex::new(ended), handle, told: None })
    }

    /// Notes that the thread was told to end: its deadline counts from now. Threads that are told together share one
    /// deadline, however many of them hang.
    pub fn told(&mut self) {
        self.told.get_or_insert_with(Instant::now);
    }

    /// Waits for the end of a thread that was told to end. Returns its result or its panic.
    ///
    /// # Errors
    /// The thread has not ended within that time since it was told; it runs on.
    pub fn end(self, within: Duration) -> Result<std::thread::Result<T>, Overdue> {
        let ended = self.ended.into_inner().unwrap_or_else(PoisonError::into_inner);
        let passed = self.told.map_or(Duration::ZERO, |told| told.elapsed());
        match ended.recv_timeout(within.saturating_sub(passed)) {
            Err(RecvTimeoutError::Timeout) => {
                let what = format!("the end of thread {}", self.name);
                Err(Overdue::from_thread(what, within, self.id.load(Ordering::Relaxed)))
            }
            // Only its last steps are left, which do not wait.
            Err(RecvTimeoutError::Disconnected) => Ok(self.handle.join()),
            Ok(never) => match never {},
        }
    }

    /// [`Thread::end`] for destructors: reports a thread that has not ended. A panic has been printed by then.
    pub fn end_or_tell(self) {
        if let Err(overdue) = self.end(END) {
            overdue.tell();
        }
    }

    /// The same for several that were told to end together: they share one deadline.
    pub fn end_all_or_tell(mut threads: Vec<Self>) {
        threads.iter_mut().for_each(Self::told);
        threads.into_iter().for_each(Self::end_or_tell);
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
    fn those_that_are_told_together_share_one_deadline() {
        let (hold, held) = channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let hangs = |number| {
            let held = held.clone();
            Thread::start(format!("hangs{number}"), move || {
                let _ = held.lock().unwrap().recv();
            })
            .unwrap()
        };
        let mut threads: Vec<_> = (0..8).map(hangs).collect();
        threads.push(Thread::start("ends", || ()).unwrap());
        let patience = Duration::from_millis(400);
        let begun = Instant::now();
        threads.iter_mut().for_each(Thread::told);
        let ends: Vec<_> = threads.into_iter().map(|thread| thread.end(patience)).collect();
        let passed = begun.elapsed();
        assert!(passed >= patience && passed < 4 * patience, "{passed:?} for eight of {patience:?}");
        let (last, rest) = ends.split_last().unwrap();
        assert!(last.is_ok(), "{last:?}");
        for (number, end) in rest.iter().enumerate() {
            let overdue = end.as_ref().unwrap_err().to_string();
            let expected = format!(" waited 400 ms for the end of thread hangs{number}, in vain");
            assert!(overdue.contains(&expected), "{overdue}");
        }
        drop(hold);
    }

    #[test]
    fn a_thread_that_does_not_end_is_reported_by_name_and_keeps_its_data() {
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
