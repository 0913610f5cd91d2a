//! The host's hold of a balloon.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::reclaimer::ReclaimError;
use crate::lock;
use crate::virtio::Interrupt;
use program::exit::{Class, Classified};

/// What has gone through a balloon, in pages of 4 KiB unless the name says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonCounts {
    /// Pages now in the balloon.
    pub pages: u64,
    /// Pages that went in.
    pub inflated: u64,
    /// Pages that came out.
    pub deflated: u64,
    /// Bytes reported free.
    pub reported_bytes: u64,
    /// Ranges handed to the reclaimer, for either reason.
    pub runs: u64,
    /// Ranges of them that it could not take.
    pub failed: u64,
    /// Pages, or reported buffers, outside of RAM.
    pub refused_outside: u64,
    /// Pages that were in the balloon already, or reported buffers that touch it.
    pub refused_duplicate: u64,
    /// Pages taken out of the balloon that were not in it.
    pub refused_absent: u64,
    /// Buffers that are no lists of pages: not aligned, empty, too long, of the wrong direction, outside of RAM.
    pub refused_malformed: u64,
}

impl BalloonCounts {
    fn add(&mut self, more: Self) {
        self.inflated += more.inflated;
        self.deflated += more.deflated;
        self.reported_bytes += more.reported_bytes;
        self.runs += more.runs;
        self.failed += more.failed;
        self.refused_outside += more.refused_outside;
        self.refused_duplicate += more.refused_duplicate;
        self.refused_absent += more.refused_absent;
        self.refused_malformed += more.refused_malformed;
    }
}

/// A target that no guest could reach.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a balloon of {pages} pages does not fit into a guest of {ram} pages")]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub struct TargetError {
    pub pages: u32,
    pub ram: u32,
}

impl Classified for TargetError {
    fn class(&self) -> Class {
        Class::Fault
    }
}

/// What device and host share.
#[derive(Debug)]
pub(super) struct Shared {
    interrupt: Arc<Interrupt>,
    ram: u32,
    target: AtomicU32,
    actual: AtomicU32,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    counts: BalloonCounts,
    error: Option<ReclaimError>,
}

impl Shared {
    pub(super) fn new(interrupt: Arc<Interrupt>, ram: u32) -> Self {
        Self {
            interrupt,
            ram,
            target: AtomicU32::new(0),
            actual: AtomicU32::new(0),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// The configuration space: `num_pages`, `actual`.
    pub(super) fn config(&self) -> [u8; 8] {
        let [target, actual] =
            [&self.target, &self.actual].map(|word| u64::from(word.load(Ordering::SeqCst)));
        (actual << 32 | target).to_le_bytes()
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut BalloonCounts)) {
        change(&mut lock(&self.state).counts);
    }

    pub(super) fn add(&self, more: BalloonCounts, pages: u64) {
        self.count(|counts| {
            counts.add(more);
            counts.pages = pages;
        });
    }

    pub(super) fn note_error(&self, error: ReclaimError) {
        lock(&self.state).error = Some(error);
    }

    /// The guest says how large the balloon is.
    pub(super) fn set_actual(&self, pages: u32) {
        // Under the lock, so that a thread that has just read the size is waiting by now.
        let _state = lock(&self.state);
        self.actual.store(pages, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// The driver has gone: its pages are its successor's to use. The target stays.
    pub(super) fn reset(&self) {
        self.actual.store(0, Ordering::SeqCst);
        self.count(|counts| counts.pages = 0);
    }
}

/// Tells a balloon what to do, from any thread.
#[derive(Clone, Debug)]
pub struct BalloonHandle(Arc<Shared>);

impl BalloonHandle {
    pub(super) const fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Asks the guest for a balloon of `pages` pages of 4 KiB.
    pub fn set_target(&self, pages: u32) -> Result<(), TargetError> {
        if pages > self.0.ram {
            return Err(TargetError { pages, ram: self.0.ram });
        }
        self.0.target.store(pages, Ordering::SeqCst);
        self.0.interrupt.config_changed();
        Ok(())
    }

    /// The size that the guest says the balloon has. What it has been seen to give is [`BalloonCounts::pages`].
    pub fn actual(&self) -> u32 {
        self.0.actual.load(Ordering::SeqCst)
    }

    /// Waits until the size that the guest says is another than `pages`, and returns it; `pages` if that takes longer
    /// than `patience`.
    pub fn wait_change(&self, pages: u32, patience: Duration) -> u32 {
        let state = lock(&self.0.state);
        let same = |_: &mut State| self.actual() == pages;
        drop(self.0.changed.wait_timeout_while(state, patience, same));
        self.actual()
    }

    /// What has gone through the balloon.
    pub fn counts(&self) -> BalloonCounts {
        lock(&self.0.state).counts
    }

    /// Takes the last error of the reclaimer.
    pub fn take_error(&self) -> Option<ReclaimError> {
        lock(&self.0.state).error.take()
    }
}
