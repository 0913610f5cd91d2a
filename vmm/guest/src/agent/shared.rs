//! What the link's threads and its users share: its state, and the socket.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use guest_abi::link::{HEADER_BYTES, MAX_PAYLOAD, ToAgent};
use guest_mem::waits::{Overdue, WAKE, wake_was_lost};

use super::error::{AgentError, End};
use super::state::State;

/// What the link's threads and its users share.
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
    pub(super) socket: UnixStream,
    /// Held while one frame is written.
    pub(super) sending: Mutex<()>,
    /// How long an answer may take.
    pub(super) patience: Duration,
}

impl Shared {
    /// A panic while the lock is held leaves the state whole: each change is one assignment.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the link: the reader takes in what has arrived, finds the end, and wakes all waiting threads. The reason is
    /// this one, unless the agent gave one of its own, or something else ended the link before.
    pub(super) fn end(&self, reason: End) {
        let mut state = self.lock();
        state.reason.get_or_insert(reason);
        self.announce(state);
        // Fails only if the socket is not connected any more.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Wakes all waiting threads, after a change.
    pub(super) fn announce(&self, mut state: MutexGuard<'_, State>) {
        state.changed = Instant::now();
        drop(state);
        self.changed.notify_all();
    }

    pub(super) fn send(&self, message: &ToAgent<'_>) -> Result<(), AgentError> {
        let mut buffer = [0; HEADER_BYTES + MAX_PAYLOAD];
        let frame = message.encode(&mut buffer).map_err(AgentError::Request)?;
        let sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let written = (&self.socket).write_all(frame);
        drop(sending);
        if let Err(source) = written {
            // Half a frame may be on its way: nothing can follow it.
            self.end(End::of(source));
            let deadline = Some(Instant::now() + self.patience);
            self.wait("the end of the link", deadline, |_| None::<()>)?;
            return Err(Overdue::new("the thread that reads the link to find its end", self.patience).into());
        }
        Ok(())
    }

    /// Waits until `take` finds something, which may have arrived before the link ended. Without a deadline it takes as
    /// long as the guest takes; of that, too, this thread must be woken.
    pub(super) fn wait<T>(
        &self,
        what: &str,
        deadline: Option<Instant>,
        mut take: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<Option<T>, AgentError> {
        let mut state = self.lock();
        let mut slept = None;
        loop {
            let late = slept.filter(|slept| wake_was_lost(state.changed.elapsed(), *slept));
            let found = take(&mut state);
            if found.is_some() {
                // The reader may wait for room in the output.
                self.announce(state);
                return match late {
                    Some(slept) => Err(Overdue::unannounced(what, slept).into()),
                    None => Ok(found),
                };
            }
            if let Some(end) = &state.end {
                return Err(end.clone().into());
            }
            let left = deadline.map_or(WAKE, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(None);
            }
            let (locked, waited) =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
            (state, slept) = (locked, waited.timed_out().then_some(left));
        }
    }
}
