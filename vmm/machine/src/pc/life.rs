//! The end of a PC: its cause, and the threads and hooks that wait for it.
//!
//! ```text
//!   vCPU thread: crash ───────────┐
//!   power port, i8042: off, reset ├──> Life::end (the first one counts) ──> its waiters and hooks
//!   terminal, signal: stopped ────┘
//! ```

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use guest_mem::waits::{Overdue, WAKE, wake_was_lost};

use guest::CrashReport;

/// Why a PC runs no more.
#[derive(Clone, Debug)]
pub enum Ending {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// A vCPU could not go on.
    Crash(Arc<CrashReport>),
    /// A device's thread could not go on.
    Device(String),
    /// The guest has come to where this host can run it no further, which the text explains.
    HostLimit(&'static str),
    /// The machine's user wants it to end.
    Stopped,
}

type Hook = Box<dyn FnOnce(&Ending) + Send>;

#[derive(Default)]
struct State {
    ending: Option<Ending>,
    /// When it ended.
    at: Option<Instant>,
    hooks: Vec<Hook>,
}

/// One PC's life, shared by all its threads.
#[derive(Default)]
pub struct Life {
    state: Mutex<State>,
    ended: Condvar,
}

impl Life {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it, unless it has ended: the first cause counts.
    pub fn end(&self, ending: Ending) {
        let mut state = self.lock();
        if state.ending.is_some() {
            return;
        }
        let hooks = std::mem::take(&mut state.hooks);
        state.ending = Some(ending.clone());
        state.at = Some(Instant::now());
        drop(state);
        self.ended.notify_all();
        hooks.into_iter().for_each(|hook| hook(&ending));
    }

    /// How it ended, if it has.
    pub fn ending(&self) -> Option<Ending> {
        self.lock().ending.clone()
    }

    /// Waits for the end, as long as the guest wants to live. Polls now and then: an end whose wake was lost is found,
    /// and the lost wake is reported.
    pub fn wait(&self) -> Ending {
        self.wait_looking(WAKE)
    }

    fn wait_looking(&self, every: Duration) -> Ending {
        let mut state = self.lock();
        let mut timed_out = false;
        loop {
            if let Some(ending) = &state.ending {
                if state.at.is_some_and(|at| was_late(timed_out, at.elapsed(), every)) {
                    Overdue::unannounced("the end of the guest", every).tell();
                }
                return ending.clone();
            }
            let (now_locked, waited) =
                self.ended.wait_timeout(state, every).unwrap_or_else(PoisonError::into_inner);
            (state, timed_out) = (now_locked, waited.timed_out());
        }
    }

    /// Has `hook` called at the end, on the thread that ends it; at once if it has ended.
    pub fn at_end(&self, hook: impl FnOnce(&Ending) + Send + 'static) {
        let mut state = self.lock();
        match state.ending.clone() {
            Some(ending) => {
                drop(state);
                hook(&ending);
            }
            None => state.hooks.push(Box::new(hook)),
        }
    }
}

/// Whether an end so long ago was found by polling alone.
fn was_late(looked: bool, ago: Duration, every: Duration) -> bool {
    looked && wake_was_lost(ago, every)
}

impl std::fmt::Debug for Life {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Life").field("ending", &self.ending()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cause_counts_and_everybody_hears_of_it() {
        let life = Arc::new(Life::default());
        let waiting = std::thread::spawn({
            let life = life.clone();
            move || life.wait()
        });
        let (send, receive) = std::sync::mpsc::channel();
        let early = send.clone();
        life.at_end(move |ending| early.send(matches!(ending, Ending::Reset)).unwrap());
        assert!(life.ending().is_none());
        life.end(Ending::Reset);
        life.end(Ending::PowerOff);
        life.at_end(move |ending| send.send(matches!(ending, Ending::Reset)).unwrap());
        assert!(matches!(waiting.join().unwrap(), Ending::Reset));
        assert!(matches!(life.ending(), Some(Ending::Reset)));
        assert_eq!(receive.iter().collect::<Vec<_>>(), [true, true]);
    }

    #[test]
    fn an_end_just_now_may_still_be_announced() {
        let every = Duration::from_millis(800);
        let late = [0, 99, 100, 101, 800].map(|ms| was_late(true, Duration::from_millis(ms), every));
        assert_eq!(late, [false, false, false, true, true]);
        assert!(!was_late(false, 2 * every, every), "it was announced");
    }

    #[test]
    fn an_end_whose_wake_was_lost_is_found() {
        let life = Arc::new(Life::default());
        let waiting = std::thread::spawn({
            let life = life.clone();
            move || life.wait_looking(Duration::from_millis(20))
        });
        life.lock().ending = Some(Ending::PowerOff);
        assert!(matches!(waiting.join().unwrap(), Ending::PowerOff));
    }
}
