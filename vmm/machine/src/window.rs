//! The periods in which host memory is unavailable because of the VMM itself: it is read-only while its protection is
//! toggled, or the cgroup that it is charged to is squeezed.
//!
//! A guest write that faults in the first finds no writable host mapping, an access that faults in the second may find no
//! page, and `KVM_RUN` fails with `EFAULT`. The guest's state is as before the instruction, so entering again repeats it: nothing is lost.
//! An `EFAULT` that no toggle explains must be told apart.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use guest_mem::waits::{Overdue, WAKE};

use super::sys::{Futex, Woke};

/// See the [module](self).
#[derive(Debug, Default)]
pub struct ProtectionWindow {
    /// How many toggles are between their two calls; also the futex of the threads that wait for their end.
    open: Futex,
    /// Toggles ended so far.
    ended: AtomicU64,
}

/// Host memory is read-only somewhere until this is dropped.
#[derive(Debug)]
pub struct Open<'a>(&'a ProtectionWindow);

impl ProtectionWindow {
    /// Says that memory is about to become read-only. Before the first `mprotect`; the other half is the drop
    /// of the returned value, after the second.
    pub fn open(&self) -> Open<'_> {
        self.open.fetch_add(1, Ordering::SeqCst);
        Open(self)
    }

    /// How many toggles had ended. A vCPU takes note of it before it enters the guest.
    pub fn ended(&self) -> u64 {
        self.ended.load(Ordering::SeqCst)
    }

    /// Whether a toggle explains an `EFAULT` met since [`ended`](Self::ended) was `before`. If one is under
    /// way, waits for its end.
    ///
    /// # Errors
    /// It does not end, or its wake is lost.
    pub fn explains(&self, before: u64) -> Result<bool, Overdue> {
        self.explains_within(before, WAKE)
    }

    fn explains_within(&self, before: u64, patience: Duration) -> Result<bool, Overdue> {
        loop {
            let (open, ended) = (self.open.load(Ordering::SeqCst), self.ended());
            if open == 0 {
                // One that was open a moment ago has ended by now.
                return Ok(self.ended() != before);
            }
            if self.open.wait(open, patience) == Woke::TimedOut
                && let Some(overdue) = self.missed(ended, patience)
            {
                return Err(overdue);
            }
        }
    }

    /// The error of a thread that began to wait when so many toggles had ended, if no wake came in time.
    fn missed(&self, ended: u64, patience: Duration) -> Option<Overdue> {
        let what = "the host to give back what it had made read-only for a moment";
        match self.open.load(Ordering::SeqCst) {
            0 => Some(Overdue::unannounced(what, patience)),
            _ if self.ended() == ended => Some(Overdue::new(what, patience)),
            _ => None,
        }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        // Before `open` falls: a thread that sees no open window must see that one ended.
        self.0.ended.fetch_add(1, Ordering::SeqCst);
        self.0.open.fetch_sub(1, Ordering::SeqCst);
        self.0.open.wake_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_toggle_since_the_entry_explains_a_fault() {
        let window = ProtectionWindow::default();
        let explains = |before| window.explains(before).unwrap();
        assert!(!explains(window.ended()));
        let before = window.ended();
        drop(window.open());
        assert!(explains(before));
        assert!(!explains(window.ended()));
    }

    #[test]
    fn a_fault_inside_a_toggle_waits_for_its_end() {
        let window = ProtectionWindow::default();
        let before = window.ended();
        let open = window.open();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let explained = window.explains(before).unwrap();
                (explained, window.open.load(Ordering::SeqCst))
            });
            drop(open);
            assert_eq!(waiter.join().unwrap(), (true, 0));
        });
    }

    #[test]
    fn a_toggle_that_does_not_end_is_not_waited_for_for_ever() {
        let window = ProtectionWindow::default();
        let _open = window.open();
        let overdue = window.explains_within(0, Duration::from_millis(20)).unwrap_err().to_string();
        assert!(
            overdue.contains(" waited 20 ms for the host to give back what it had made read-only"),
            "{overdue}"
        );
    }

    #[test]
    fn a_lost_wake_is_told_apart_from_a_toggle_that_does_not_end() {
        let window = ProtectionWindow::default();
        let patience = Duration::from_millis(20);
        let said = |ended| window.missed(ended, patience).map(|overdue| overdue.to_string());
        let lost = said(0).unwrap();
        let _open = window.open();
        let hangs = said(0).unwrap();
        assert!(lost.contains("which had come") && hangs.contains(", in vain"), "{lost}; {hangs}");
        drop(window.open());
        assert_eq!(said(0), None, "another one has ended, and who waits begins anew");
    }
}
