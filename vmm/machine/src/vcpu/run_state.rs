//! The run state of a vCPU's thread: its task before it enters the guest again.

use std::sync::atomic::{AtomicU8, Ordering};

/// A run state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::FromRepr)]
#[repr(u8)]
pub(super) enum RunState {
    /// Run the guest.
    Run,
    /// Carry out the commands in the queue, then run the guest.
    Command,
    /// Carry out the commands in the queue, then end. No state follows.
    Quit,
}

/// The run state of one vCPU: set by other threads, which then kick the vCPU.
///
/// ```text
///   Run ── command ──> Command ── take ──> Run          Run, Command ── quit ──> Quit
/// ```
#[derive(Debug, Default)]
pub(super) struct SharedRunState(AtomicU8);

const RUN: u8 = RunState::Run as u8;
const COMMAND: u8 = RunState::Command as u8;

impl SharedRunState {
    fn of(word: u8) -> RunState {
        RunState::from_repr(word).unwrap_or(RunState::Quit)
    }

    /// The state now. The vCPU's thread reads it once the vCPU counts as inside the guest: a thread that changes the
    /// state and then kicks the vCPU either finds it inside, or the thread sees the change.
    pub(super) fn get(&self) -> RunState {
        Self::of(self.0.load(Ordering::SeqCst))
    }

    /// Says that there is a command in the queue.
    pub(super) fn command(&self) {
        // If it is not Run, the queue will be looked at anyway.
        let _ = self.0.compare_exchange(RUN, COMMAND, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Tells the thread to end.
    pub(super) fn quit(&self) {
        self.0.store(RunState::Quit as u8, Ordering::SeqCst);
    }

    /// The state, and Run from now on unless it is Quit. Before the queue is emptied: a later command sets it again.
    pub(super) fn take(&self) -> RunState {
        match self.0.compare_exchange(COMMAND, RUN, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(word) | Err(word) => Self::of(word),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_taken_once_and_the_end_stays() {
        let state = SharedRunState::default();
        assert_eq!((state.get(), state.take()), (RunState::Run, RunState::Run));
        state.command();
        assert_eq!(
            (state.get(), state.take(), state.get()),
            (RunState::Command, RunState::Command, RunState::Run)
        );
        state.quit();
        state.command();
        assert_eq!((state.take(), state.get()), (RunState::Quit, RunState::Quit));
    }
}
